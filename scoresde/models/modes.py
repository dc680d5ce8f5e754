"""Training and evaluation mode of modules that several threads use.

The mode is an attribute of every part of a module, and a thread that sets it sets it for all. So each part has its
users while it has any: whoever wants the mode that they have joins them, the last one who leaves puts the part's own
mode back, and whoever wants the other mode is refused. Training is for one thread at a time: two would write the same
weights. A thread may change its mind inside its own use, where no other thread takes part: a training that judges its
model on the way.
"""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass, field

from torch import nn

from scoresde.errors.kinds import ConfigError

__all__ = ["enter_mode", "leave_mode"]

NAMES = {True: "training", False: "evaluation"}


@dataclass(eq=False)
class _Users:
    """The users of a part.

    Args:
        part: the module.
        own: the mode that it had before.
        modes: for each user, in the order in which they came, the thread and its mode.
    """

    part: nn.Module
    own: bool
    modes: list[tuple[int, bool]] = field(default_factory=list)


_users: dict[int, _Users] = {}  # by the identity of the part, which _Users keeps alive
_guard = threading.Lock()


def enter_mode(module: nn.Module, *, training: bool) -> list[nn.Module]:
    """Put every part of a module into a mode, for this thread, and return them for ``leave_mode``.

    Raises:
        ConfigError: another thread uses a part in the other mode, or trains it; nothing is changed.
    """
    me, parts = threading.get_ident(), list(module.modules())
    with _guard:
        for part in parts:
            held = _users.get(id(part))
            modes = [] if held is None else held.modes
            others = any(thread != me for thread, _ in modes)
            if others and (training or any(mode != training for _, mode in modes)):
                theirs = training if all(mode == training for _, mode in modes) else not training
                raise ConfigError(
                    f"another thread uses {type(part).__name__} in {NAMES[theirs]} mode, and this one needs "
                    f"{NAMES[training]} mode{', which is for one at a time' * (theirs == training)}",
                    cure="give each thread a copy, copy.deepcopy(model), or let one wait for the other",
                )
        for part in parts:
            _users.setdefault(id(part), _Users(part, part.training)).modes.append((me, training))
            _set(part, training)
    return parts


def leave_mode(parts: list[nn.Module], *, training: bool) -> None:
    """Give up what ``enter_mode`` returned; the last user of a part puts its own mode back."""
    me = threading.get_ident()
    with _guard:
        for part in parts:
            held = _users.get(id(part))
            if held is None or (me, training) not in held.modes:
                continue  # a forked child, which left the block of its parent
            # The last such entry: an outer use of the same thread stays.
            place = len(held.modes) - 1 - held.modes[::-1].index((me, training))
            del held.modes[place]
            _set(part, held.modes[-1][1] if held.modes else held.own)
            if not held.modes:
                del _users[id(part)]


def _set(part: nn.Module, training: bool) -> None:
    # A mode that is right is not touched: another thread may be reading it.
    if part.training != training:
        part.training = training


def _forget() -> None:
    """Let a forked child know its own thread alone; the others are not there, and keep no module in a mode."""
    me = threading.get_ident()
    for key, held in [*_users.items()]:
        held.modes = [one for one in held.modes if one[0] == me]
        _set(held.part, held.modes[-1][1] if held.modes else held.own)
        if not held.modes:
            del _users[key]
    _guard.release()


if sys.platform != "win32":
    # No fork in the middle of a change: the child would find half of it, and a guard that nobody releases.
    os.register_at_fork(before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_forget)
