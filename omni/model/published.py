"""Reads the config.json of published weights into our dataclasses. What isn't supported is refused."""

from omni.base.config import checked


def require(config: dict, **allowed) -> None:
    """ValueError if a key of `config` has another value than `allowed` says, which may be a tuple of them.

    Keys may be absent.
    """
    for key, values in allowed.items():
        values = values if isinstance(values, tuple) else (values,)
        if key in config and config[key] not in values:
            raise ValueError(f'"{key}" is {_shown(config[key])}; only {_shown(values[0])} is supported')


def arch_values(cls, config: dict, names: dict[str, str], needed: bool) -> dict:
    """{field of `cls`: value}; `names` has the key of each field in `config`. A ValueError names the key.

    Unless `needed`, a key may be absent: the defaults of `cls` are those of the published config.
    """
    values = {}
    for field, key in names.items():
        if key not in config:
            if needed:
                raise ValueError(f'"{key}" is missing')
            continue
        try:
            values[field] = checked(cls, field, config[key])
        except ValueError as err:
            raise ValueError(f'"{key}" {err}, not {_shown(config[key])}') from None
    return values


def check_heads(width: int, heads: int, key: str) -> None:
    if width % heads:
        raise ValueError(f'"{key}" is {heads}, which does not divide the width {width}')


def renamed(state: dict, ignored: tuple[str, ...], names: tuple[tuple[str, str], ...]) -> dict:
    """A published state dict under our names, without tensors whose names begin with one in `ignored`.

    In each name the pairs of `names` are replaced in turn: "^" in front of one means at the beginning only.
    """
    result = {}
    for name, tensor in state.items():
        if name.startswith(ignored):
            continue
        ours = name
        for theirs, replacement in names:
            if not theirs.startswith("^"):
                ours = ours.replace(theirs, replacement)
            elif ours.startswith(theirs[1:]):
                ours = replacement + ours[len(theirs) - 1:]
        if ours in result:
            raise ValueError(f"the tensor {ours} is there twice, once as {name}")
        result[ours] = tensor
    return result


def _shown(value) -> str:
    return str(value)[:60] if not isinstance(value, str) else f'"{value[:60]}"'
