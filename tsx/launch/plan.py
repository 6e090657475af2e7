"""What is about to run: one RunPlan a training process.

Owns run ids and the expansion of seeds. Refuses nothing: configs arrive decoded and checked.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from tsx import config as configs
from tsx.config import RunConfig
from tsx.errors import ConfigError

ID_ALPHABET = string.ascii_lowercase + string.digits
ID_LENGTH = 8
MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class RunPlan:
    """One run to be, with everything the registry records about who asked for it."""

    run_id: str
    name: str
    recipe: str
    config: RunConfig
    tags: tuple[str, ...] = ()
    note: str = ""
    parent: str = ""
    smoke: bool = False
    command: tuple[str, ...] = ()


def new_run_id() -> str:
    """Return 8 random characters of [a-z0-9], the first a letter (so no id reads as a number)."""
    first = secrets.choice(string.ascii_lowercase)
    return first + "".join(secrets.choice(ID_ALPHABET) for _ in range(ID_LENGTH - 1))


def with_seeds(plan: RunPlan, count: int) -> list[RunPlan]:
    """Return `count` plans with seeds s, s+1, ..., each an id and a name suffix of its own.

    Raises:
        ConfigError: the last seed would be too large.
    """
    if count == 1:
        return [plan]
    first = plan.config.train.seed
    if first + count - 1 > MAX_SEED:
        raise ConfigError(
            f"--seeds {count} from seed {first} goes beyond the largest seed, {MAX_SEED}",
            next_command=f"tsx run RECIPE --seed 0 --seeds {count}",
        )
    return [
        replace(
            plan,
            run_id=new_run_id(),
            name=f"{plan.name}-s{seed}",
            config=msgspec.structs.replace(
                plan.config, train=msgspec.structs.replace(plan.config.train, seed=seed)
            ),
        )
        for seed in range(first, first + count)
    ]


def as_sweep(plans: Sequence[RunPlan]) -> list[RunPlan]:
    """Give the plans one parent id when there are several of them."""
    if len(plans) < 2:
        return list(plans)
    parent = f"sweep-{new_run_id()}"
    return [replace(plan, parent=parent) for plan in plans]


def encode_plans(plans: Sequence[RunPlan]) -> bytes:
    """Return the plans as JSON for a supervisor in another process."""
    return msgspec.json.encode(
        [
            {
                **{name: getattr(plan, name) for name in RunPlan.__slots__},
                "config": configs.to_plain(plan.config),
            }
            for plan in plans
        ]
    )


def decode_plans(text: bytes) -> list[RunPlan]:
    """Return the plans that `encode_plans` wrote.

    Raises:
        ConfigError: a config that does not hold (the sender was another version).
    """
    plans: list[dict[str, Any]] = msgspec.json.decode(text)
    return [
        RunPlan(
            **{
                **plan,
                "config": configs.decode(plan["config"], place=f"run {plan['name']!r}"),
                "tags": tuple(plan["tags"]),
                "command": tuple(plan["command"]),
            }
        )
        for plan in plans
    ]
