"""What is asked of a person, and tables to take along. Each answer has a key and stays while other tabs are open."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pandas as pd
import streamlit as st

T = TypeVar("T")
KEPT = "keep_"


def keep() -> None:
    """Streamlit forgets what is not on the page, unless it is said again."""
    for key in list(st.session_state):
        if str(key).startswith(KEPT):
            st.session_state[key] = st.session_state[key]


def kept(name: str, default: Any, allowed: Callable[[Any], bool] = lambda value: True) -> str:
    """The key of an answer; one that is not ``allowed`` on today's data gives way to the ``default``."""
    key = KEPT + name
    if key not in st.session_state or not allowed(st.session_state[key]):
        st.session_state[key] = default
    return key


def slider(label: str, low: float, high: float, default: Any, name: str, step: float | None = None) -> Any:
    """A number, or two with a default of two, from ``low`` to ``high``; where there is no choice ``high``, unasked."""
    if low >= high:
        return high
    ends = default if isinstance(default, tuple) else (default,)
    bounded = tuple(min(max(end, low), high) for end in ends)

    def inside(value: Any) -> bool:
        return all(low <= end <= high for end in (value if isinstance(value, tuple) else (value,)))

    key = kept(name, bounded if isinstance(default, tuple) else bounded[0], inside)
    return st.slider(label, low, high, step=step, key=key)


def choice(label: str, options: Sequence[T], default: T, name: str, shown: Callable[[T], str] = str) -> T:
    """One of ``options``."""
    key = kept(name, default, lambda value: value in options)
    found = st.selectbox(label, options, format_func=shown, key=key)
    assert found is not None
    return found


def one_of(label: str, options: Sequence[T], name: str, shown: Callable[[T], str] = str) -> T:
    """The same as buttons beside each other; the first one to begin with."""
    found = st.radio(
        label, options, format_func=shown, key=kept(name, options[0], options.__contains__), horizontal=True
    )
    assert found is not None
    return found


def switch(label: str, default: bool, name: str, help: str | None = None) -> bool:
    """On or off."""
    return st.toggle(label, key=kept(name, default), help=help)


def whole(label: str, high: int, default: int, name: str) -> int:
    """A whole number from 0 to ``high``."""
    return int(st.number_input(label, 0, high, step=1, key=kept(name, default, lambda value: 0 <= value <= high)))


def csv(frame: pd.DataFrame, name: str) -> None:
    """A button that downloads ``frame``."""
    st.download_button(f"{name}.csv", frame.to_csv(index=False), f"{name}.csv", "text/csv", on_click="ignore")


def table(frame: pd.DataFrame, name: str, height: int = 300) -> None:
    """A table with its download."""
    st.dataframe(frame, hide_index=True, height=height)
    csv(frame, name)
