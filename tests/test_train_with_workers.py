"""The example that trains with collectors in other processes, by TorchRL and on a Ray cluster."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import ray
import torch

from examples import train_with_workers
from examples.train_with_workers import Options, collect, make_env, train
from torchrl_bicnet import BiCNetActor

TINY = {"num_envs": 4, "steps_per_batch": 5, "max_steps": 8, "updates_per_batch": 1, "batch_size": 16}
RAY_SETTINGS = {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}  # workers as urgent as other tests
FRAMES = 2 * 4 * 5  # of a batch of two workers


@pytest.fixture(scope="module")
def ray_cluster():
    """A cluster of one machine, started by Ray's own command."""
    command = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--port=0", "--num-cpus=2"]
    command += ["--include-dashboard=false", "--object-store-memory=100000000"]
    pipe = {"env": {**os.environ, **RAY_SETTINGS}, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with (
        tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder,  # short, as sockets need
        subprocess.Popen([*command, f"--temp-dir={folder}"], text=True, **pipe) as process,
    ):
        address = (found for line in process.stdout if (found := re.search(r"--address='(\S+)'", line)))
        yield next(address).group(1)
        process.terminate()


@pytest.fixture(params=["processes", "ray"])
def backend(request, monkeypatch):
    if request.param == "ray":
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        monkeypatch.setenv("RAY_ADDRESS", request.getfixturevalue("ray_cluster"))
        yield "ray"
        ray.shutdown()
    else:
        yield "processes"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Ray and of collectors
class TestWorkers:
    def test_batches_are_by_the_weights_sent_last_also_after_a_worker_died(self, backend, monkeypatch):
        collectors = []
        make = train_with_workers.make_collector
        monkeypatch.setattr(
            train_with_workers, "make_collector", lambda *args: collectors.append(make(*args)) or collectors[-1]
        )
        options = Options(backend=backend, total_frames=6 * FRAMES, **TINY)
        actor = BiCNetActor.from_env(make_env(options, 1, 0), hidden_size=8)
        frames, starts = 0, []
        for i, batch in enumerate(collect(options, actor)):
            assert batch.shape == (FRAMES,)
            frames += batch.numel()
            with torch.no_grad():
                torch.testing.assert_close(batch["agents", "action"], actor(batch.clone())["agents", "action"])
                for parameter in actor.parameters():
                    parameter += 0.1 * torch.randn_like(parameter)
            starts.append(batch["agents", "observation"][:: TINY["steps_per_batch"]])
            if i == 2 and backend == "ray":
                ray.kill(collectors[0].remote_collectors[1])
        assert frames == 6 * FRAMES
        assert len(collectors) == (2 if backend == "ray" else 1)
        assert len(starts[0].unique(dim=0)) == 8  # the workers' environments differ
        if backend == "ray":  # new workers start elsewhere
            assert not any(row.equal(start) for row in starts[3] for start in starts[0])

    def test_it_trains(self, backend, capsys):
        options = Options(backend=backend, sync=False, total_frames=4 * FRAMES, **TINY)
        returns = train(options)
        assert re.findall(r"^ +(\d+) frames", capsys.readouterr().out, re.M) == ["0", str(4 * FRAMES)]
        assert returns[0] != returns[-1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--workers", "0"], "workers: Input should be greater than 0, found 0"),
        (["--scenario", "navigatoin"], "Unknown scenario 'navigatoin'"),
        (["--scenario", "simple_tag"], "The environment has several groups"),
    ],
)
def test_a_wrong_option_is_refused_by_name(arguments, said):
    command = [sys.executable, train_with_workers.__file__, *arguments]
    failed = subprocess.run(command, capture_output=True, text=True)
    assert failed.returncode == 1
    assert failed.stderr.strip().splitlines()[-1].startswith(f"error: {said}")
    assert "Traceback" not in failed.stderr
