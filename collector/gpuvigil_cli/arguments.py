"""Options that every command about a collector has."""

from __future__ import annotations

from typing import Annotated

import typer

Url = Annotated[str, typer.Option(envvar="GPUVIGIL_URL", help="The collector's API.")]
Ca = Annotated[str, typer.Option(envvar="GPUVIGIL_CA", help="With https: the collector's CA, a PEM file.")]
Cert = Annotated[str, typer.Option(envvar="GPUVIGIL_CERT", help="With https: your certificate, a PEM file.")]
Key = Annotated[str, typer.Option(envvar="GPUVIGIL_KEY", help="With https: its key, a PEM file.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
