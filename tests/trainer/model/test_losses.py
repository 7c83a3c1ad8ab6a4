from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from trainer.data.micro_batch import IGNORE
from trainer.data.mined import Judged
from trainer.model.losses import Pairing, distillation_loss, info_nce, matryoshka_info_nce, trace_losses


def plain_info_nce(
    queries: torch.Tensor, candidates: torch.Tensor, dids: list[str], listed: list[set[str]], tau: float
) -> float:
    """The formula, term by term."""
    losses = []
    for i, query in enumerate(queries):
        total = 0.0
        for j, candidate in enumerate(candidates):
            if j != i and (dids[j] == dids[i] or dids[j] in listed[i]):
                continue
            total += math.exp(float(query @ candidate) / tau)
        losses.append(-math.log(math.exp(float(query @ candidates[i]) / tau) / total))
    return sum(losses) / len(losses)


@given(st.integers(0, 1000), st.integers(1, 6), st.integers(0, 4), st.floats(0.05, 1.0))
def test_info_nce_equals_its_formula(seed: int, n: int, more: int, tau: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    queries = nn.functional.normalize(torch.randn(n, 5, generator=generator), dim=-1)
    candidates = nn.functional.normalize(torch.randn(n + more, 5, generator=generator), dim=-1)
    dids = [str(int(x)) for x in torch.randint(0, 4, (n + more,), generator=generator)]
    listed = [{str(int(x)) for x in torch.randint(0, 4, (2,), generator=generator)} | {dids[i]} for i in range(n)]
    pairing = Pairing.of(dids, [frozenset(one) for one in listed])
    found = float(info_nce(queries, candidates, pairing, torch.tensor(1 / tau)))
    assert found == pytest.approx(plain_info_nce(queries, candidates, dids, listed, tau), rel=1e-4, abs=1e-4)


def test_a_positive_is_never_a_negative() -> None:
    """Two perfectly embedded queries with the same candidate have no loss."""
    vector = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    same = Pairing.of(["a", "a"], [frozenset("a"), frozenset("a")])
    assert float(info_nce(vector, vector, same, torch.tensor(20.0))) == 0.0
    other = Pairing.of(["a", "b"], [frozenset("a"), frozenset("b")])
    assert float(info_nce(vector, vector, other, torch.tensor(20.0))) == pytest.approx(math.log(2))


def test_the_symmetric_term_ranks_queries_too() -> None:
    queries, candidates = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    pairing = Pairing.of(["a", "b"], [frozenset("a"), frozenset("b")])
    forward = float(info_nce(queries, candidates, pairing, torch.tensor(1.0)))
    backward = float(torch.nn.functional.cross_entropy((queries @ candidates.T).T, torch.arange(2)))
    both = float(info_nce(queries, candidates, pairing, torch.tensor(1.0), symmetric=True))
    assert both == pytest.approx((forward + backward) / 2)


@given(st.integers(0, 1000), st.integers(1, 6), st.lists(st.integers(1, 7), max_size=3, unique=True), st.booleans())
def test_the_matryoshka_loss_is_the_mean_over_truncated_unit_vectors(
    seed: int, n: int, dims: list[int], symmetric: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    queries, candidates = (nn.functional.normalize(torch.randn(n, 8, generator=generator), dim=-1) for _ in range(2))
    pairing = Pairing.of([str(i) for i in range(n)], [frozenset() for _ in range(n)])
    scale = torch.tensor(5.0)
    given_dims = float(matryoshka_info_nce(queries, candidates, pairing, scale, dims=dims, symmetric=symmetric))
    losses = [
        float(info_nce(queries[:, :d] / queries[:, :d].norm(dim=1, keepdim=True),
                       candidates[:, :d] / candidates[:, :d].norm(dim=1, keepdim=True), pairing, scale, symmetric=symmetric))
        for d in (8, *dims)
    ]  # fmt: skip
    assert given_dims == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    if not dims:
        plain = info_nce(queries, candidates, pairing, scale, symmetric=symmetric)
        assert given_dims == float(plain), "the default is the plain loss, to the bit"


def test_the_matryoshka_loss_pulls_the_first_dimensions() -> None:
    """The whole vectors are right already; the first two dimensions are not, and get a gradient."""
    queries = torch.tensor([[0.1, 0.0, 1.0, 0.0], [0.1, 0.0, 0.0, 1.0]], requires_grad=True)
    candidates = torch.tensor([[0.0, 0.1, 1.0, 0.0], [0.1, 0.0, 0.0, 1.0]])
    pairing = Pairing.of(["a", "b"], [frozenset(), frozenset()])
    gradients = []
    for dims in ((), (2,)):
        queries.grad = None
        matryoshka_info_nce(queries, candidates, pairing, torch.tensor(20.0), dims=dims).backward()
        assert queries.grad is not None
        gradients.append(float(queries.grad[0, :2].norm()))
    assert gradients[1] > 10 * gradients[0]


def test_cross_entropy_is_averaged_per_row() -> None:
    """A long trace has the weight of a short one; a row without labels has none."""
    torch.manual_seed(0)
    head, states = nn.Linear(4, 7), torch.randn(3, 5, 4)
    labels = torch.full((3, 5), IGNORE)
    labels[0, 1:5] = torch.tensor([1, 2, 3, 4])
    labels[1, 4] = 6
    found = trace_losses(states, labels, head)
    logs = head(states).log_softmax(-1)
    expected = [-sum(logs[0, i, i] for i in range(1, 5)) / 4, -logs[1, 4, 6], torch.tensor(0.0)]
    assert torch.allclose(found, torch.stack(expected), atol=1e-6)
    first = torch.stack([-logs[0, 1, 1], -logs[1, 4, 6], torch.tensor(0.0)])
    assert torch.allclose(trace_losses(states, labels, head, route=2.0), torch.stack(expected) + 2 * first, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_distillation_loss_is_the_divergence_from_the_verifier(temperature: float) -> None:
    generator = torch.Generator().manual_seed(3)
    queries = nn.functional.normalize(torch.randn(3, 5, generator=generator), dim=-1)
    candidates = nn.functional.normalize(torch.randn(8, 5, generator=generator), dim=-1)
    judged = [Judged(0, (0, 3, 4), (0.9, 0.2, 0.6)), Judged(2, (2, 7), (0.99, 1.0))]
    wanted = 0.0
    for query, places, yes in judged:
        odds = [math.log(p / (1 - p)) for p in (min(one, 1 - 1e-6) for one in yes)]
        teacher = [math.exp(one / temperature) for one in odds]
        own = [math.exp(4.0 * float(queries[query] @ candidates[place])) for place in places]
        for t, o in zip(teacher, own, strict=True):
            p, q = t / sum(teacher), o / sum(own)
            wanted += p * math.log(p / q)
    scale = torch.tensor(4.0, requires_grad=True)
    queries.requires_grad_()
    found = distillation_loss(queries, candidates, judged, scale, temperature=temperature)
    assert found.item() == pytest.approx(wanted, rel=1e-3)
    found.backward()
    assert scale.grad is None
    assert [bool(row.any()) for row in queries.grad] == [True, False, True]  # type: ignore[union-attr]


def test_an_embedder_that_agrees_with_the_verifier_has_no_distillation_loss() -> None:
    yes = (0.8, 0.3, 0.5)
    queries = torch.tensor([[1.0]])
    candidates = torch.tensor([[math.log(p / (1 - p)) / 7] for p in yes])
    agreeing = distillation_loss(queries, candidates, [Judged(0, (0, 1, 2), yes)], torch.tensor(7.0), temperature=1.0)
    assert float(agreeing) == pytest.approx(0.0, abs=1e-6)
