"""A script like train.py whose jobs only pretend to train, when they are started as processes of their own."""

import csv
import json
import shutil
from pathlib import Path

from tests.conftest import ROOT
from tests.tiny_run import Result, call

# A job does what `size` and `act` say; without Hydra and torch it is there in a moment.
SCRIPT = """
import json, os, re, signal, sys, time
from pathlib import Path

def job():
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    folder = Path(given["hydra.run.dir"].strip("'"))
    names = ("RANK", "WORLD_SIZE", "SLURM_PROCID", "TORCHELASTIC_RUN_ID", "CUDA_VISIBLE_DEVICES", "MARK")
    seen = {name: os.environ[name] for name in names if name in os.environ}
    record = {"arguments": sys.argv[1:], "environment": seen, "pid": os.getpid(), "start": time.time()}
    act = given.get("act")

    def stop(number, frame):
        (folder / "checkpoints").mkdir(exist_ok=True)
        (folder / "checkpoints/step_000001.ckpt").touch()
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    if act == "fail":
        sys.stderr.write("some trace\\n\\nerror: This job is broken.\\n")
        sys.exit(1)
    if act == "exit":
        print("half way", flush=True)
        sys.exit(3)
    if act == "die":
        print("step 1\\rstep 2", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if act == "stop" and "resume" not in given:
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(60)
    if act == "stuck":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(1)
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(60)
    if act == "wait":
        (folder / "progress.json").write_text('{"step": 3, "steps": 12, "train/loss": 1.25}')
        time.sleep(60)
    if act == "slow":
        time.sleep(0.6)
    record["end"] = time.time()
    (folder / "job.json").write_text(json.dumps(record))
    (folder / "metrics.json").write_text(json.dumps({"test/score": float(given.get("size", 1))}))

if "hydra.mode=RUN" in sys.argv:
    job()
    sys.exit()

import hydra
from llama_adapter.launch import entry

@hydra.main(config_path="conf", config_name="train", version_base="1.3")
def main(config):
    raise AssertionError("the sweep's own process trains nothing")

entry.run(main, restore="resume")
"""
TRAIN = """
defaults: [_self_, {sweep: null}]
output_dir: ${hydra:runtime.output_dir}
resume: null
act: null
size: 1
trainer: {accelerator: cpu, devices: 1, num_nodes: 1}
objective: {metric: test/score, direction: maximize}
sweep: {_target_: llama_adapter.launch.schema.SweepConfig, redo: null, fail_fast: false}
hydra:
  sweep: {dir: sweep, subdir: "${swept_folder:run,${hydra:overrides.task}}"}
  callbacks: {report: {_target_: llama_adapter.launch.sweep_report.SweepReport}}
  hydra_logging: {formatters: {simple: {format: "%(message)s"}}}
"""


class ProcessSweep:
    """The script in a folder of its own, which is the current one."""

    def __init__(self, folder: Path, monkeypatch) -> None:
        self.folder = folder / "sweep"
        self.script = folder / "app.py"
        self.script.write_text(SCRIPT)
        (folder / "conf/hydra/launcher").mkdir(parents=True)
        (folder / "conf/train.yaml").write_text(TRAIN)
        shutil.copy(ROOT / "conf/hydra/launcher/subprocess.yaml", folder / "conf/hydra/launcher")
        monkeypatch.chdir(folder)

    def call(self, *arguments: str) -> Result:
        return call(self.script, "-m", "hydra/launcher=subprocess", *arguments)

    def job(self, **settings: object) -> dict:
        """What the job with these settings saw and when."""
        name = "run_" + ",".join(f"{key}={value}" for key, value in settings.items())
        return json.loads((self.folder / name / "job.json").read_text())

    def rows(self) -> list[dict[str, str]]:
        with (self.folder / "sweep.csv").open(encoding="utf-8") as file:
            return list(csv.DictReader(file))
