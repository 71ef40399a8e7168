"""The base class of the specs, which turns pydantic's errors into one `ConfigError` that lists each by its path."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from raykube.errors import ConfigError, Problem
from raykube.names import nearest, unsendable

if TYPE_CHECKING:
    from typing_extensions import Self

_SECRET = frozenset({"env_vars", "runtime_env"})


def _sendable(text: str) -> str:
    if problem := unsendable(text):
        raise ValueError(problem)
    return text


#: Text that can be sent, and be given to a process.
Text = Annotated[str, AfterValidator(_sendable)]


def jsonable(value: dict[str, Any], what: str) -> dict[str, Any]:
    """Return a copy as it will be sent: the caller may go on changing the value.

    Raises:
        ValueError: no JSON can hold it.
    """
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        text.encode()
        copied: dict[str, Any] = json.loads(text)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} must be JSON, to be sent: {error}") from None
    return copied


class Spec(BaseModel):
    """Base of all specs: frozen, strict about keys, and with all problems in one `ConfigError`."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, extra="forbid", protected_namespaces=())

    def __init__(self, *unnamed: object, **fields: Any) -> None:
        if unnamed:
            raise _positional(type(self))
        with _config_errors(type(self)):
            super().__init__(**fields)

    @classmethod
    def model_validate(cls, obj: Any, **how: Any) -> Self:
        """Make a spec from a mapping of its fields.

        Raises:
            ConfigError: the mapping is no valid spec; lists every problem.
        """
        with _config_errors(cls):
            return super().model_validate(obj, **how)

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **how: Any) -> Self:
        """Make a spec from a JSON object of its fields.

        Raises:
            ConfigError: the object is no valid spec; lists every problem.
        """
        with _config_errors(cls):
            return super().model_validate_json(json_data, **how)

    if not TYPE_CHECKING:  # type checkers would take it as permission to set fields

        def __setattr__(self, name: str, value: Any) -> None:
            raise ConfigError(
                f"{name} cannot be set: a {type(self).__name__} is frozen",
                next_step=f"make another one: model_copy(update={{{name!r}: ...}})",
            )

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:  # noqa: ARG002
        """Return a copy with new values for some fields, checked like a new spec; pydantic's own checks nothing.

        Args:
            update: the new values.
            deep: has no effect: a copy never shares mutable values.

        Raises:
            ConfigError: the copy would be invalid.
        """
        changed = dict(update or {})
        kept = {key: value for key, value in vars(self).items() if key not in changed and self._is_given(key, value)}
        copied = type(self)(**kept, **changed)
        copied.model_fields_set.difference_update(kept.keys() - self.model_fields_set)
        return copied

    def _is_given(self, key: str, value: Any) -> bool:
        """Whether a field's value was given or made, and is not just the default."""
        field = type(self).model_fields.get(key)
        return field is None or key in self.model_fields_set or value != field.get_default(call_default_factory=True)


def _positional(kind: type[Spec]) -> ConfigError:
    """Return the error for fields that were given without their names."""
    required = [key for key, field in kind.model_fields.items() if field.is_required()]
    written = ", ".join(f"{key}=..." for key in required or [*kind.model_fields][:1])
    return ConfigError(f"{kind.__name__} takes its fields by name", next_step=f"write {kind.__name__}({written})")


@contextlib.contextmanager
def _config_errors(kind: type[Spec]) -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        raise ConfigError.of(f"invalid {kind.__name__}", tuple(_problems(error, kind))) from None
    except UnicodeEncodeError:
        raise ConfigError.of(f"invalid {kind.__name__}", [Problem("", "a key holds half a character")]) from None
    except TypeError as error:  # a nested mapping with keys that are not text
        if "keywords must be strings" not in str(error):
            raise
        raise ConfigError.of(f"invalid {kind.__name__}", [Problem("", "a key must be text")]) from None


def _problems(error: ValidationError, kind: type[Spec]) -> Iterator[Problem]:
    for item in error.errors():
        path = _path(item["loc"])
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, ConfigError) and cause.problems:
            yield from (Problem(_join_paths(path, inner.path), inner.what, inner.next_step) for inner in cause.problems)
        elif item["type"] == "extra_forbidden":
            yield Problem(path, "unknown key", nearest(str(item["loc"][-1]), kind.model_fields))
        elif item["type"] == "missing":
            yield Problem(path, "is required")
        elif cause is not None:
            yield Problem(path, str(cause))
        else:
            yield Problem(path, f"{item['msg'][0].lower()}{item['msg'][1:]}, got {_shown(item['loc'], item['input'])}")


def _shown(loc: tuple[int | str, ...], value: Any) -> str:
    """Return a value as an error may show it: only its type in fields where people put passwords."""
    return f"{value!r:.80}" if loc and _SECRET.isdisjoint(loc) else f"a value of type {type(value).__name__}"


def _path(loc: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")


def _join_paths(outer: str, inner: str) -> str:
    return f"{outer}.{inner}" if outer and inner and not inner.startswith("[") else outer + inner
