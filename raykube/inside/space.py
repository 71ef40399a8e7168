"""What ``sweep`` can search: Ray Tune's domains, where Tune looks for them and if Optuna takes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from raykube.errors import Problem

_DOMAINS = "write tune.choice, uniform, quniform, loguniform, randint, qrandint or lograndint"


def unsearchable(space: Mapping[str, Any]) -> list[Problem]:
    """Return all problems that keep `space` from being searched."""
    found = list(_problems(dict(space), "space"))
    if not found and not _has_domain(dict(space)):
        found.append(Problem("space", "has nothing to search", "give a key a domain: tune.loguniform(1e-4, 1e-1)"))
    return found


def described(value: Any) -> Any:
    """Return a part of a space as JSON, the same in each process: of values that are not plain, only the type."""
    if type(value).__module__ == "ray.tune.search.sample":
        return [type(value).__name__, described(vars(value))]
    if isinstance(value, Mapping):
        return {str(name): described(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [described(each) for each in value]
    return value if value is None or isinstance(value, str | int | float) else type(value).__name__


def _problems(value: Any, path: str, within: str = "") -> Iterator[Problem]:
    """Yield what is wrong with a value of the space, and with all that it holds.

    `within` names what holds the value, if Tune does not look for domains in that.
    """
    if _is_domain(value):
        yield from _problems_of_domain(value, path, within)
    elif isinstance(value, Mapping):
        yield from _problems_of_mapping(value, path, within)
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            yield from _problems(each, f"{path}[{number}]", within or f"a {type(value).__name__}")


def _problems_of_domain(domain: Any, path: str, within: str) -> Iterator[Problem]:
    if within:
        yield Problem(path, f"is a domain in {within}, which is not searched", "give it a key of its own")
    elif refusal := _refusal(domain):
        yield Problem(path, refusal, _DOMAINS)
    for number, category in enumerate(getattr(domain, "categories", ())):
        yield from _problems(category, f"{path}[{number}]", "a choice")


def _problems_of_mapping(value: Mapping[Any, Any], path: str, within: str) -> Iterator[Problem]:
    if [*value] == ["grid_search"]:
        yield Problem(path, "is a grid, which Optuna does not search", "write tune.choice([...])")
        return
    if [*value] == ["eval"] and within != "a choice":
        yield Problem(path, "is an expression to Tune, which Optuna does not search", "name the key otherwise")
        return
    within = within or ("" if isinstance(value, dict) else f"a {type(value).__name__}")
    for key, each in value.items():
        if not within and (not isinstance(key, str) or "/" in key):
            yield Problem(f"{path}.{key}", "is under a key that Tune cannot use", "make it a string without a /")
        yield from _problems(each, f"{path}.{key}", within)


def _refusal(domain: Any) -> str:
    """Return why Optuna does not take a domain; empty if it does."""
    import optuna  # noqa: F401 # if it is missing, fail here: Ray's own module would not name it
    from ray.tune.search.optuna import OptunaSearch

    try:
        OptunaSearch.convert_search_space({"domain": domain})
    except (ValueError, TypeError) as error:
        return f"cannot be searched: {error}"
    return ""


def _has_domain(value: Any) -> bool:
    return _is_domain(value) or (isinstance(value, dict) and any(map(_has_domain, value.values())))


def _is_domain(value: Any) -> bool:
    from ray.tune.search.sample import Domain

    return isinstance(value, Domain)
