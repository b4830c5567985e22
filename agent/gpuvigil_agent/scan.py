"""`gpuvigil scan`: a health check of this node in under 10 s, with or without GPUs, driver or root.

Exit codes as monitoring plug-ins have them: 0 ok, 1 warning, 2 critical, 3 unknown (nothing could be checked,
or the command was used wrongly).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from gpuvigil_agent import config_file, scan_report
from gpuvigil_agent.config import AgentConfig
from gpuvigil_agent.host_files import HostFiles, RealHostFiles
from gpuvigil_agent.identity import node_name
from gpuvigil_agent.kernel_grammar import normalise_pci
from gpuvigil_agent.scan_checks import Facts, judge, state_of
from gpuvigil_agent.scan_driver import read_gpus
from gpuvigil_agent.scan_host import gpus_on_pci, kernel_events, read_host, read_kernel_log, read_time_sync
from gpuvigil_protos import settings

UNKNOWN: Final = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run a scan and print it; returns the exit code.

    A bug of ours is unknown too: 1 would tell the monitor that the node has a warning.
    """
    try:
        return _main(argv)
    except Exception as error:  # noqa: BLE001 - the one place: whatever it is, the exit code must not lie
        sys.stderr.write(f"gpuvigil scan: a bug in the scan itself: {error!r:.300}\n")
        return UNKNOWN


def _main(argv: Sequence[str] | None) -> int:
    try:
        options = _parser().parse_args(argv)
        config = _config(options)
        facts = facts_of(config)
    except settings.ConfigError as error:
        sys.stderr.write(f"gpuvigil scan: {error}\n")
        return UNKNOWN
    except SystemExit as leaving:  # argparse: 0 after --help, 2 for a wrong option, which here means critical
        return UNKNOWN if leaving.code else 0
    findings = judge(facts)
    state, code = state_of(findings, facts.checked)
    report = scan_report.as_json(config.node, state, findings, facts)
    text = scan_report.dumps(report) if options.json else scan_report.as_text(report, sys.stdout.isatty())
    sys.stdout.write(f"{text}\n")
    return code


def facts_of(config: AgentConfig) -> Facts:
    """Look at the node once, beside an agent that may run on it."""
    with tempfile.TemporaryDirectory(prefix="gpuvigil-scan-") as folder:
        return asyncio.run(_scan(_with_own_state(config, Path(folder))))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpuvigil scan",
        description="Check this node's GPUs, driver, disks, network, memory and kernel log, once.",
        epilog="exit codes: 0 ok, 1 warning, 2 critical, 3 unknown",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    default = config_file.DEFAULT if os.access(config_file.DEFAULT, os.R_OK) else None
    parser.add_argument(
        "--config", type=Path, default=default, metavar="FILE", help="the agent's config file"
    )
    parser.add_argument("--simulate", action="store_true", help="check a simulated node instead")
    return parser


def _config(options: argparse.Namespace) -> AgentConfig:
    config = settings.load(options.config, AgentConfig) if options.config else AgentConfig()
    config_file.check_values(config, str(options.config or "defaults"))
    config = msgspec.structs.replace(config, node=node_name(config.node, settings.Tls()))
    if options.simulate:
        config = msgspec.structs.replace(config, gpu=msgspec.structs.replace(config.gpu, source="simulated"))
    if config.simulate.start_ns:
        return config
    simulate = msgspec.structs.replace(config.simulate, start_ns=time.time_ns())
    return msgspec.structs.replace(config, simulate=simulate)


def _with_own_state(config: AgentConfig, folder: Path) -> AgentConfig:
    """Give the scan a folder of its own with a copy of the agent's inventory, which it must not change."""
    if config.gpu.source != "simulated":
        with contextlib.suppress(OSError):  # never ran here, or not ours to read: nothing is expected
            shutil.copyfile(Path(config.state_directory) / "gpus.json", folder / "gpus.json")
    return msgspec.structs.replace(config, state_directory=str(folder))


async def _scan(config: AgentConfig) -> Facts:
    """Ask everything at once; kernel lines are read afterwards, as they need the inventory for their GPU."""
    facts, simulated = Facts(), config.gpu.source == "simulated"
    files = _host_files(config)
    on_pci = None if simulated else gpus_on_pci(files)
    questions = [read_host(files, config.host, facts)]
    if not simulated:  # this machine's kernel log and clock are not the simulated node's
        questions += [read_kernel_log(facts), read_time_sync(facts)]
    reading = asyncio.create_task(read_gpus(config, facts, on_pci))
    await asyncio.gather(*questions)
    client = await reading
    by_pci = {normalise_pci(gpu.pci_bus_id): gpu.uuid for gpu in client.gpus}
    facts.events += kernel_events(facts.kernel_records, by_pci.get)
    facts.checked.sort()
    facts.unchecked.sort()
    return facts


def _host_files(config: AgentConfig) -> HostFiles:
    if config.gpu.source != "simulated" or not config.simulate.host:
        return RealHostFiles()
    from gpuvigil_agent.simulate.host import SimulatedHostFiles  # noqa: PLC0415 - only where it is asked for

    return SimulatedHostFiles(config.simulate, config.node)
