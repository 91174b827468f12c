"""Drive VMAS by an ONNX model alone, without torchrl: ``python examples/drive_with_onnx.py actor.onnx``.

Needs vmas and onnxruntime, and a model that `examples/export_onnx.py` wrote, of a scenario of VMAS's own.
"""

from __future__ import annotations

import argparse

import numpy as np
import onnxruntime
import torch
from vmas import make_env

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--scenario", default="navigation", help="of VMAS, with one group: what it was trained on")
    parser.add_argument("--n-agents", type=int, default=4, help="the model takes any number")
    parser.add_argument("--num-envs", type=int, default=100)
    parser.add_argument("--max-steps", type=int, default=100)
    arguments = parser.parse_args()
    actor = onnxruntime.InferenceSession(arguments.model)
    env = make_env(arguments.scenario, arguments.num_envs, seed=0, n_agents=arguments.n_agents)
    observations, returns, over = env.reset(), 0.0, torch.zeros(arguments.num_envs, dtype=torch.bool)
    wanted, found = actor.get_inputs()[0].shape[-1], observations[0].shape[-1]
    if wanted != found:
        parser.error(f"the model takes {wanted} numbers of each agent, these {arguments.scenario} agents see {found}")
    for _ in range(arguments.max_steps):
        inputs = {"observation": torch.stack(observations, 1).numpy()}  # (num_envs, n_agents, features)
        if len(actor.get_inputs()) == 2:  # trained on teams that change
            inputs["mask"] = np.ones(inputs["observation"].shape[:2], dtype=bool)
        (actions,) = actor.run(None, inputs)
        observations, rewards, done, _ = env.step([*torch.from_numpy(actions).unbind(1)])
        returns += torch.stack(rewards, 1).mean(1) * ~over
        over |= done
    print(f"return per agent: {returns.mean():.2f} in {arguments.num_envs} episodes")
