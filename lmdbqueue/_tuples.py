"""``NamedTuple``: that of ``typing``, but a class of it is made without a compiler at each import.

Owns: what a type checker takes for ``typing.NamedTuple``, and what its instances do. A class of it costs an import a
twentieth of what one of ``typing``'s does, which compiles a constructor for each; there are forty. What users get
(``Stats``, ``Retry``) stays ``typing``'s, whose signatures tools can show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple  # noqa: PLC0414  (so that it can be imported from here)
else:
    from collections import _tuplegetter

    _new = tuple.__new__

    class _Kind(type):
        """Makes a class of tuples of the fields that its body annotates."""

        def __new__(cls, name, bases, body):
            made = type.__new__(cls, name, bases, {**body, "__slots__": ()})
            if bases:
                made._fields = made.__match_args__ = fields = tuple(made.__annotations__)
                made._field_defaults = {field: body[field] for field in fields if field in body}
                for index, field in enumerate(fields):
                    setattr(made, field, _tuplegetter(index, None))
            return made

    class NamedTuple(tuple, metaclass=_Kind):  # noqa: SLOT001  (its metaclass says so)
        """A tuple whose values have names."""

        def __new__(cls, *values, **named):
            fields = cls._fields
            if len(values) == len(fields) and not named:
                return _new(cls, values)
            found = {**cls._field_defaults, **named, **dict(zip(fields, values, strict=False))}
            beyond = len(values) > len(fields) or not named.keys().isdisjoint(fields[: len(values)])
            if beyond or len(found) != len(fields):
                message = f"{cls.__name__} is of {', '.join(fields)}, not of {len(values)} values and {sorted(named)}"
                raise TypeError(message)
            return _new(cls, [found[field] for field in fields])

        @classmethod
        def _make(cls, values):
            return cls(*values)

        def _replace(self, **changed):
            made = _new(self.__class__, map(changed.pop, self._fields, self))
            if changed:
                message = f"{self.__class__.__name__} has no {', '.join(changed)}"
                raise TypeError(message)
            return made

        __replace__ = _replace

        def _asdict(self):
            return dict(zip(self._fields, self, strict=True))

        def __getnewargs__(self):
            return tuple(self)

        def __repr__(self):
            values = ", ".join(f"{field}={value!r}" for field, value in self._asdict().items())
            return f"{self.__class__.__name__}({values})"
