"""Ask questions, and show tables that can be downloaded. An answer has a key, and stays while other tabs are open."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pandas as pd
import streamlit as st

T = TypeVar("T")
ROW = 35  # pixels of a line of a table
KEPT = "keep_"  # begins the key of every answer


def keep() -> None:
    """Set every answer again: Streamlit forgets an answer that is not on the page."""
    for key in list(st.session_state):
        if str(key).startswith(KEPT):
            st.session_state[key] = st.session_state[key]


def kept(name: str, default: Any, allowed: Callable[[Any], bool] = lambda value: True) -> str:
    """Return the key of an answer. An answer that is not ``allowed`` on today's data becomes the ``default``."""
    key = KEPT + name
    if key not in st.session_state or not allowed(st.session_state[key]):
        st.session_state[key] = default
    return key


def slider(label: str, low: float, high: float, default: Any, name: str, step: float | None = None) -> Any:
    """Ask for a number from ``low`` to ``high``, or for two, if the default is two. Where there is no choice, return
    ``high`` and do not ask."""
    if low >= high:
        return high

    ends = default if isinstance(default, tuple) else (default,)
    bounded = tuple(min(max(end, low), high) for end in ends)

    def inside(value: Any) -> bool:
        return all(low <= end <= high for end in (value if isinstance(value, tuple) else (value,)))

    key = kept(name, bounded if isinstance(default, tuple) else bounded[0], inside)
    return st.slider(label, low, high, step=step, key=key)


def choice(label: str, options: Sequence[T], default: T, name: str, shown: Callable[[T], str] = str) -> T:
    """Ask for one of ``options``, in a list that opens."""
    key = kept(name, default, lambda value: value in options)
    answer = st.selectbox(label, options, format_func=shown, key=key)
    assert answer is not None
    return answer


def one_of(label: str, options: Sequence[T], name: str, shown: Callable[[T], str] = str) -> T:
    """Ask for one of ``options``, as buttons beside each other. The default is the first."""
    key = kept(name, options[0], options.__contains__)
    answer = st.radio(label, options, format_func=shown, key=key, horizontal=True)
    assert answer is not None
    return answer


def switch(label: str, default: bool, name: str, help: str | None = None) -> bool:
    """Ask for on or off."""
    return st.toggle(label, key=kept(name, default), help=help)


def whole(label: str, high: int, default: int, name: str) -> int:
    """Ask for a whole number from 0 to ``high``."""
    return int(st.number_input(label, 0, high, step=1, key=kept(name, default, lambda value: 0 <= value <= high)))


def csv(frame: pd.DataFrame, name: str) -> None:
    """Show a button that downloads ``frame``."""
    st.download_button(f"{name}.csv", frame.to_csv(index=False), f"{name}.csv", "text/csv", on_click="ignore")


def table(frame: pd.DataFrame, name: str | None = None, most: int = 8) -> None:
    """Show a table as high as its lines, ``most`` at a time; what is missing as a dash. ``name``: of its download.

    A column "latent" of addresses shows the number of each, as a link.
    """
    height = ROW * (min(len(frame), most) + 1) + 3
    linked = "latent" in frame and frame["latent"].map(lambda value: isinstance(value, str)).any()
    columns = {"latent": st.column_config.LinkColumn(width=70, display_text=r"(\d+)\.html$")} if linked else {}
    st.dataframe(frame, hide_index=True, height=height, placeholder="–", column_config=columns)
    if name:
        csv(frame, name)
