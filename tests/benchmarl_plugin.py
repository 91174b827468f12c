"""BiCNet inside BenchMARL: every algorithm that can take it trains an iteration with it.

Run by the Python of an environment with BenchMARL (benchmarks/rivals/benchmarl_run.py says how to make one), from the
root of the repository: `python tests/benchmarl_plugin.py`.
"""

import sys
import tempfile
from pathlib import Path

import torch
from benchmarl import algorithms
from benchmarl.environments import VmasTask
from benchmarl.experiment import Experiment, ExperimentConfig
from torchrl.data import Composite, Unbounded

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from torchrl_bicnet.integrations.benchmarl import BicnetConfig, CompiledVmas

NAMES = ("Maddpg", "Iddpg", "Masac", "Isac", "Mappo", "Ippo", "Qmix", "Vdn", "Iql")


def train(algorithm, share_params=True, task=None):
    config = ExperimentConfig.get_from_yaml()
    config.loggers, config.create_json = [], False
    config.evaluation = config.render = task is not None  # our VMAS draws without a display
    config.evaluation_interval, config.evaluation_episodes = 120, 2
    config.max_n_frames, config.max_n_iters = None, 1
    config.on_policy_collected_frames_per_batch = config.off_policy_collected_frames_per_batch = 120
    config.on_policy_n_envs_per_worker = config.off_policy_n_envs_per_worker = 12
    config.on_policy_minibatch_size = config.off_policy_train_batch_size = 40
    config.on_policy_n_minibatch_iters = config.off_policy_n_optimizer_steps = 2
    config.off_policy_memory_size = 1000
    config.share_policy_params = share_params
    with tempfile.TemporaryDirectory() as folder:
        config.save_folder = folder
        experiment = Experiment(
            task=task or VmasTask.NAVIGATION.get_from_yaml(),
            algorithm_config=getattr(algorithms, f"{algorithm}Config").get_from_yaml(),
            model_config=BicnetConfig(hidden_size=8, num_cells=[16], n_frequencies=2),
            critic_model_config=BicnetConfig(communication="lstm", hidden_size=8, num_cells=[16]),
            seed=0,
            config=config,
        )
        before = [parameter.detach().clone() for loss in experiment.losses.values() for parameter in loss.parameters()]
        experiment.run()
        after = [parameter for loss in experiment.losses.values() for parameter in loss.parameters()]
        assert any(not old.equal(new) for old, new in zip(before, after)), algorithm
        assert all(parameter.isfinite().all() for parameter in after)
        return experiment


def test_what_it_computes():
    spec = Composite({"agents": Composite({"observation": Unbounded((3, 5)), "action": Unbounded((3, 2))}, shape=(3,))})
    about = {"agent_group": "agents", "n_agents": 3, "device": "cpu", "action_spec": None, "input_has_agent_dim": True}
    config = BicnetConfig(hidden_size=8)
    each = Composite({"agents": Composite({"value": Unbounded((3, 1))}, shape=(3,))})
    model = config.get_model(input_spec=spec, output_spec=each, centralised=False, share_params=True, **about)
    td = spec.rand((7,))
    assert model(td)["agents", "value"].equal(model.net(*(td[key] for key in model.in_keys)))
    one = Composite({"value": Unbounded((1,))})
    model = config.get_model(input_spec=spec, output_spec=one, centralised=True, share_params=True, **about)
    assert model(td)["value"].shape == (7, 1)
    # An agent's output depends on what the others see
    observation = td["agents", "observation"].requires_grad_()
    model = config.get_model(input_spec=spec, output_spec=each, centralised=False, share_params=False, **about)
    (gradient,) = torch.autograd.grad(model(td)["agents", "value"][:, 0].sum(), observation)
    assert gradient.abs().sum((0, -1)).gt(0).all()
    state = Composite({"state": Unbounded((9,))})
    about |= {"input_has_agent_dim": False}
    message = ""
    try:
        config.get_model(input_spec=state, output_spec=one, centralised=True, share_params=True, **about)
    except ValueError as error:
        message = str(error)
    assert "features of each of 3 agents, found 'state' of shape (9,)" in message


def test_yaml():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "bicnet.yaml")
        path.write_text("name: bicnet\ncommunication: mean\nnum_cells: [32]\nactivation_class: torch.nn.SiLU\n")
        assert BicnetConfig.get_from_yaml(str(path)) == BicnetConfig(
            "mean", num_cells=[32], activation_class=torch.nn.SiLU
        )
    assert BicnetConfig.get_from_yaml() == BicnetConfig()


def test_tasks():
    """On our VMAS: what models read is the observation alone, and time limits do not terminate."""
    config = VmasTask.NAVIGATION.get_from_yaml().config | {"max_steps": 5}
    for task in (
        CompiledVmas("navigation", config),
        CompiledVmas("hidden_goals", {"n_agents": 3, "max_steps": 5, "compile": False}),
    ):
        experiment = train("Iddpg", task=task)
        assert list(experiment.observation_spec.keys(True, True)) == [("agents", "observation")]
        td = experiment.test_env.rollout(5)
        assert td["next", "truncated"][:, -1].all()
        assert not td["next", "terminated"].any()
    train("Ippo", task=CompiledVmas("dispersion", {"n_agents": 3, "max_steps": 5, "compile": False}))
    discrete = CompiledVmas("navigation", config | {"compile": False})
    train("Qmix", task=discrete)


if __name__ == "__main__":
    test_what_it_computes()
    test_yaml()
    test_tasks()
    for name in NAMES:
        for share_params in (True, False):
            train(name, share_params)
            print(f"{name}, share_params={share_params}: trained", flush=True)
