"""Are all agents one network, or equal copies of it? What parameter sharing is, on the modules themselves.

With shared parameters there is one network. The agents are rows of its input, as the samples of a batch are, and each
adds its part to the one gradient. Equal copies give the same outputs, but a copy gets its own agent's part only, so the
first optimisation step makes the copies different networks.

Run it: ``python examples/parameter_sharing.py``
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchrl.modules import MultiAgentMLP

from torchrl_bicnet import BiCNet

# Each choice and how it is written. BiCNet has an encoder and a decoder around a communication layer, which is one
# network in any case: its steps over the agents are the steps of one recurrence. MultiAgentMLP has no communication.
CODE = {
    "BiCNet, shared": "BiCNet(18, 2)",
    "BiCNet, separate": "BiCNet(18, 2, share_params=False, n_agents=n_agents)",
    "MultiAgentMLP, shared": "MultiAgentMLP(18, 2, n_agents, centralized=False, share_params=True, num_cells=[128])",
    "MultiAgentMLP, separate": "MultiAgentMLP(18, 2, n_agents, centralized=False, share_params=False, num_cells=[128])",
}


def make(choice: str, n_agents: int) -> nn.Module:
    """The net of a choice, from the code that is shown: 18 observations and 2 actions for each agent."""
    names = {"BiCNet": BiCNet, "MultiAgentMLP": MultiAgentMLP, "n_agents": n_agents}
    return eval(CODE[choice], names)


def count_parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def shared_name(name: str) -> str:
    """The shared network's name of a parameter stacked over the agents: encoder.params.0.weight, (N, ...)."""
    return name.replace(".params", "")


def equal_copies(shared: BiCNet, n_agents: int) -> BiCNet:
    """A net with an encoder and a decoder for each agent, all of them equal to the shared ones."""
    copies = BiCNet(18, 2, share_params=False, n_agents=n_agents).double()
    weights = dict(shared.named_parameters())
    for name, parameter in copies.named_parameters():
        parameter.data.copy_(weights[shared_name(name)])
    return copies


def gradients(net: BiCNet, observation: Tensor) -> dict[str, Tensor]:
    """The gradients of a loss over all agents, by the shared network's names."""
    net(observation).square().sum().backward()
    return {shared_name(name): parameter.grad for name, parameter in net.named_parameters()}


def compare(n_agents: int) -> dict[str, float]:
    """The largest differences between one network and equal copies of it on the same observations, by name."""
    shared = BiCNet(18, 2).double()
    copies = equal_copies(shared, n_agents)
    observation = torch.randn(32, n_agents, 18, dtype=torch.float64)
    outputs = (shared(observation) - copies(observation)).detach().abs().max()

    of_shared, of_copies = gradients(shared, observation), gradients(copies, observation)
    # The copies' gradients are (N, ...), what each agent contributes; the communication layer's is one in both nets.
    summed = {name: g if name.startswith("communication") else g.sum(0) for name, g in of_copies.items()}
    differences = [(of_shared[name] - summed[name]).abs().max() for name in summed]

    torch.optim.SGD(copies.parameters(), lr=0.01).step()
    apart = [(weight[0] - weight[1]).detach().abs().max() for weight in copies.encoder.parameters()]
    return {
        "their outputs": float(outputs),
        "its gradient and the sum of the copies' gradients": float(max(differences)),
        "its gradient and zero, for comparison": float(max(gradient.abs().max() for gradient in of_shared.values())),
        "the copies' encoders after one step of SGD": float(max(apart)),
    }


def run_on(net: nn.Module, n_agents: int) -> str:
    """The shape of a net's output for a number of agents, or its error."""
    try:
        return f"output {tuple(net(torch.randn(32, n_agents, 18)).shape)}"
    except ValueError as error:
        return f"error: {error}"


def main() -> None:
    print("Each choice, for 18 observations and 2 actions:")
    for choice, code in CODE.items():
        print(f"{choice:<25}{code}")

    teams = (2, 4, 8)
    print(f"\n{'Parameters':<25}" + "".join(f"{f'{n} agents':>10}" for n in teams))
    for choice in CODE:
        print(f"{choice:<25}" + "".join(f"{count_parameters(make(choice, n)):>10,}" for n in teams))

    print("\nOne BiCNet, and 4 equal copies of its encoder and decoder; largest difference between")
    for what, value in compare(n_agents=4).items():
        print(f"{what:<55}{value:.0e}")

    print("\nThe nets made for 4 agents, run on 8:")
    for choice in CODE:
        print(f"{choice:<25}{run_on(make(choice, 4), 8)}")
    make("MultiAgentMLP, shared", 8).load_state_dict(make("MultiAgentMLP, shared", 4).state_dict())
    print("A shared MultiAgentMLP checks its N, but its weights load into the one made for 8 agents.")

    print(
        "\nSo all agents are one network, not equal copies: its gradient is the sum of what each agent contributes, and"
    )
    print("copies drift apart at the first step.")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
