"""Each adapter against its real framework: steps, loss and phases in the ring; a request saves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from integration.stack import environment

pytestmark = [pytest.mark.needs_torch, pytest.mark.timeout(240)]

TELL = """
import json, mmap, sys
from gpuvigil import layout, monitor, ring_read

def ask(after):
    # what the agent writes into the control page
    seen = mmap.mmap(monitor._control.fd, layout.CONTROL_SIZE)
    layout.CONTROL_BODY.pack_into(seen, layout.CONTROL_BODY_AT, 0, b"r1")
    seen[layout.CONTROL_REQUEST_AT : layout.CONTROL_REQUEST_AT + 8] = (7).to_bytes(8, "little")

def tell():
    ring = monitor._ring
    monitor._settle()  # what the hook's thread does twice a second
    records, lost = ring_read.records(ring._map, 0, ring.written)
    words = [json.loads(word) for word in monitor._link._words]
    print(json.dumps({
        "steps": [r.step for r in records], "losses": [r.loss for r in records], "lost": lost,
        "micro": [r.micro_steps for r in records], "faults": ring_read.faults(ring._map),
        "backward": [r.phases[2] for r in records], "eval": [r.phases[5] for r in records],
        "offers": monitor._link.offers, "words": words}), file=sys.stderr)
"""
HUGGINGFACE = (
    TELL
    + """
import os, torch
from transformers import Trainer, TrainingArguments, TrainerCallback
from gpuvigil.adapters.huggingface import GpuvigilCallback

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
    def forward(self, x, labels=None):
        out = self.layer(x)
        return {"loss": (out - labels).pow(2).mean(), "logits": out}

class Ask(TrainerCallback):
    def on_step_begin(self, args, state, control, **_):
        if state.global_step == 6:
            ask(6)

data = [{"x": torch.randn(4), "labels": torch.randn(1)} for _ in range(80)]
arguments = TrainingArguments(output_dir=sys.argv[1], max_steps=20, per_device_train_batch_size=2,
                              logging_steps=1, gradient_accumulation_steps=2, report_to=[], use_cpu=True,
                              save_strategy="no",
                              eval_strategy="steps", eval_steps=10, disable_tqdm=True)
Trainer(model=Model(), args=arguments, train_dataset=data, eval_dataset=data[:8],
        callbacks=[GpuvigilCallback(every=2), Ask()]).train()
tell()
"""
)
LIGHTNING = (
    TELL
    + """
import os, torch, lightning
from gpuvigil.adapters.lightning import GpuvigilCallback

class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
    def training_step(self, batch, index):
        if index == 6:
            ask(6)
        return self.layer(batch).pow(2).mean()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)

loader = torch.utils.data.DataLoader(torch.randn(40, 4), batch_size=2)
lightning.Trainer(max_steps=20, accelerator="cpu", logger=False, enable_checkpointing=False,
                  enable_progress_bar=False, default_root_dir=sys.argv[1],
                  callbacks=[GpuvigilCallback(sys.argv[1] + "/asked.ckpt", every=2)]).fit(Module(), loader)
tell()
"""
)
KERAS = (
    TELL
    + """
import os
os.environ["KERAS_BACKEND"] = "torch"
import keras, numpy
from gpuvigil.adapters.keras import GpuvigilCallback
model = keras.Sequential([keras.layers.Dense(1)])
model.compile(loss="mse", optimizer="sgd")
x, y = numpy.random.rand(40, 4), numpy.random.rand(40, 1)
model.fit(x, y, batch_size=2, epochs=1, verbose=0, validation_data=(x, y), callbacks=[GpuvigilCallback()])
tell()
"""
)
ZERO_CODE = """
import torch
model, data = torch.nn.Linear(4, 1), torch.randn(8, 4)
optimizer = torch.optim.AdamW(model.parameters())
other = torch.optim.SGD(model.parameters(), lr=0.0)
for _ in range(20):
    for _ in range(2):
        model(data).pow(2).mean().backward()
    optimizer.step()
    other.step()
    optimizer.zero_grad()
from gpuvigil import monitor, ring_read
records, _ = ring_read.records(monitor._ring._map, 0, monitor._ring.written)
print(len(records), file=__import__("sys").stderr)
"""


def ran(code: str, folder: Path, *before: str, **more: str) -> str:
    """Run a program; return the last line that it wrote to standard error."""
    script = folder / "train.py"
    script.write_text(code)
    env = environment() | {"HOME": str(folder), "GPUVIGIL_SOCKET": str(folder / "nobody"), "RANK": "0"} | more
    env |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [*before, sys.executable, str(script), str(folder / "out")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr.strip().splitlines()[-1]


def test_hugging_face(tmp_path: Path) -> None:
    told = json.loads(ran(HUGGINGFACE, tmp_path))
    assert told["steps"] == list(range(20)) and told["lost"] == 0
    assert all(count == 2 for count in told["micro"]), "gradient accumulation is one step"
    assert sum(loss is not None and loss > 0 for loss in told["losses"]) >= 15
    assert max(told["eval"]) > 0 and told["offers"] == {"on_request": "save"}
    [word] = told["words"]
    assert (word["outcome"], word["request"]) == ("saved", "r1") and 7 <= word["step"] <= 12
    assert (Path(word["path"]) / "trainer_state.json").exists() and word["size"] > 0
    assert not any(told["faults"].values()), told["faults"]


def test_lightning(tmp_path: Path) -> None:
    told = json.loads(ran(LIGHTNING, tmp_path))
    assert told["steps"] == list(range(20))
    assert all(loss > 0 for loss in told["losses"]) and all(spent > 0 for spent in told["backward"])
    [word] = told["words"]
    assert (word["outcome"], word["request"]) == ("saved", "r1") and Path(word["path"]).stat().st_size > 0
    assert not any(told["faults"].values()), told["faults"]


def test_keras(tmp_path: Path) -> None:
    told = json.loads(ran(KERAS, tmp_path))
    assert told["steps"] == list(range(20))
    assert all(loss > 0 for loss in told["losses"])
    assert not any(told["faults"].values()), told["faults"]


def test_zero_code_by_the_optimizers_hook(tmp_path: Path) -> None:
    run = (sys.executable, "-m", "gpuvigil.cli", "run", "--")
    assert ran(ZERO_CODE, tmp_path, *run) == "19", "what comes before the first is set-up"
    by_hand = ZERO_CODE.replace(
        "for _ in range(20):\n", "from gpuvigil import monitor\nfor _ in range(20):\n  with monitor.step():\n"
    )
    assert ran(by_hand, tmp_path, *run) == "20", "a loop with its own steps is not counted twice"
    plain = ran(ZERO_CODE.replace("monitor._ring._map, 0, monitor._ring.written", "b'', 0, 0"), tmp_path)
    assert plain == "0", "without the launcher nothing is watched"


def test_adapters_are_short() -> None:
    folder = Path(__file__).resolve().parents[2] / "agent/gpuvigil/adapters"
    assert all(len(path.read_text().splitlines()) < 80 for path in folder.glob("*.py"))


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_plain_ddp_and_fsdp_save_by_torchs_own_checkpoint_and_go_on_from_it(
    tmp_path: Path, kind: str
) -> None:
    def train(steps: int, folder: str) -> list[tuple[int, float]]:
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1", "--nproc-per-node=2",
                   "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1",
                   str(Path(__file__).parent / "sharded_job.py"), kind, str(tmp_path / folder),
                   str(steps)]  # fmt: skip
        env = environment() | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-3000:]
        return [tuple(row) for row in json.loads(done.stdout.splitlines()[-1])]

    whole = train(12, "whole")
    assert [step for step, _ in whole] == list(range(12))
    assert train(8, "parts") == whole[:8]
    assert train(12, "parts") == whole[5:], "from the checkpoint of step 4, to the same losses"
