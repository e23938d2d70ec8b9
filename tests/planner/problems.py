"""Random planner problems and the optimum by trying every labelling."""

import itertools
import random
from collections.abc import Iterator

import numpy as np

from qcompile.planner.energy import INTEGER, NONE, Energy, Labels
from qcompile.planner.problem import PlanNode, PlanTensor, Problem


def random_problem(
    rng: random.Random, sites: int, *, dynamic: bool = True, ties: bool = True, density: float = 2.0
) -> Problem:
    """A graph with fan-out and Concat-like fan-in, forbidden labels and float writers."""
    nodes = tuple(
        PlanNode(
            origin=f"n{i}",
            op_type="Conv",
            float_ns=rng.randint(0, 30),
            int_ns=None if rng.random() < 0.15 else rng.randint(0, 30),
            dynamic_ns=rng.randint(0, 30) if dynamic and rng.random() < 0.3 else None,
            sensitivity=rng.random(),
            sensitivity_dynamic=rng.random() if rng.random() < 0.5 else None,
            float_output=rng.random() < 0.2,
        )
        for i in range(sites)
    )
    tensors = tuple(
        PlanTensor(
            name=f"t{i}",
            producer=None if i < 0 else f"n{i}",
            consumers=tuple(f"n{j}" for j in range(i + 1, sites) if rng.random() < density / sites),
            quantize_ns=rng.randint(0, 9),
            dequantize_ns=rng.randint(0, 9),
            write_error=rng.choice((0.0, rng.random())),
            float_read=rng.random() < 0.2,
        )
        for i in range(-1, sites)
    )
    tied = ()
    if ties and sites > 3 and rng.random() < 0.5:
        tied = (tuple(f"n{i}" for i in rng.sample(range(sites), 2)),)
    return Problem(nodes, tensors, tied)


def labellings(energy: Energy) -> Iterator[Labels]:
    """Every legal labelling."""
    problem = energy.problem
    choices = [
        [label for label in range(3) if energy.latency[i, label] != NONE]
        for i in range(len(problem.nodes))
    ]
    for labels in itertools.product(*choices):
        agree = (
            len({labels[problem.index[o]] == INTEGER for o in tie}) == 1 for tie in problem.ties
        )
        if all(agree):
            yield np.array(labels, dtype=np.int8)


def chain(*nodes: PlanNode, quantize: int = 0, dequantize: int = 0) -> Problem:
    """A Problem of sites one behind the other, from a float input to a float output."""
    names = [n.origin for n in nodes]
    tensors = [
        PlanTensor(
            name=f"t{i}",
            producer=names[i - 1] if i else None,
            consumers=(names[i],) if i < len(names) else (),
            quantize_ns=quantize,
            dequantize_ns=dequantize,
            float_read=i == len(names),
        )
        for i in range(len(names) + 1)
    ]
    return Problem(tuple(nodes), tuple(tensors))
