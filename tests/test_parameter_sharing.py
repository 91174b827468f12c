"""The claims of examples/parameter_sharing.py and the README about parameter sharing, and what the script prints."""

import re

import pytest
import torch
from torchrl.modules import MultiAgentMLP

from examples import parameter_sharing
from examples.parameter_sharing import CODE, compare, count_parameters, make, run_on
from torchrl_bicnet import BiCNet

SHARED = [choice for choice in CODE if "shared" in choice]
SEPARATE = [choice for choice in CODE if "separate" in choice]


def test_it_prints_what_it_computes(capsys):
    torch.manual_seed(0)
    parameter_sharing.main()
    out = capsys.readouterr().out
    for choice, code in CODE.items():
        assert f"{choice:<25}{code}\n" in out
        counts = [f"{count_parameters(make(choice, n)):,}" for n in (2, 4, 8)]
        assert re.search(rf"^{choice} +{' +'.join(counts)}$", out, re.M)
        assert f"{choice:<25}{run_on(make(choice, 4), 8)}\n" in out
    assert len(re.findall(r" \de[+-]\d\d$", out, re.M)) == 4


@pytest.mark.parametrize("choice", CODE)
def test_the_number_of_parameters_depends_on_the_agents_only_without_sharing(choice):
    net = make(choice, 4)
    assert type(net) is (BiCNet if choice.startswith("BiCNet") else MultiAgentMLP)
    counts = [count_parameters(make(choice, n)) for n in (2, 4, 8)]
    if choice in SHARED:
        assert counts[0] == counts[1] == counts[2]
    else:
        assert counts[2] - counts[1] == 2 * (counts[1] - counts[0]) > 0


@pytest.mark.parametrize("n_agents", [2, 4, 8])
def test_the_shared_gradient_is_the_sum_over_the_agents_and_copies_drift_apart(n_agents):
    torch.manual_seed(0)
    outputs, gradient, size, apart = compare(n_agents).values()
    assert outputs < 1e-12
    assert gradient < 1e-12 * size
    assert size > 1
    assert apart > 1e-4


def test_each_copy_gets_the_part_of_its_own_agent():
    """One agent's part without copies: only its row of the shared encoder's output lets the gradient through."""
    torch.manual_seed(0)
    shared = make("BiCNet, shared", 3).double()
    observation = torch.randn(5, 3, 18, dtype=torch.float64)
    of_copies = parameter_sharing.gradients(parameter_sharing.equal_copies(shared, 3), observation)
    for agent in range(3):
        encoded = shared.encoder(observation)
        own = torch.arange(3).unsqueeze(-1) == agent
        heard = shared.communication(torch.where(own, encoded, encoded.detach()))
        loss = shared.decoder(torch.cat([heard, observation], -1)).square().sum()
        (part,) = torch.autograd.grad(loss, [shared.encoder[0].weight])
        torch.testing.assert_close(part, of_copies["encoder.0.weight"][agent])


@pytest.mark.parametrize("choice", CODE)
def test_another_number_of_agents(choice):
    assert run_on(make(choice, 4), 4) == "output (32, 4, 2)"
    if choice == "BiCNet, shared":
        assert run_on(make(choice, 4), 8) == "output (32, 8, 2)"
    else:
        assert run_on(make(choice, 4), 8).startswith("error: ")
    if choice in SHARED:
        make(choice, 8).load_state_dict(make(choice, 4).state_dict())
    else:
        with pytest.raises(RuntimeError):
            make(choice, 8).load_state_dict(make(choice, 4).state_dict())
