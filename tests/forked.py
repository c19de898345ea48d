"""Start the stages of a pipeline from a process that has imported their libraries already.

DVC starts each stage as `python -m src.NAME …`, which imports torch and its like for seconds, and then works for
milliseconds on a tiny model. Here a server imports these libraries once, and none of Strata's own modules, of which
each project has a copy. It forks itself for each such command, which runs in its own folder, environment and streams,
and is not seen by the next. What a real process start does is tested by the first run of tests/test_pipeline.py.
"""

import importlib
import json
import os
import runpy
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LIBRARIES = (
    "jinja2", "matplotlib.figure", "mlflow", "numba", "numpy", "pandas", "pyarrow.parquet", "pydantic",
    "safetensors.torch", "scipy.optimize", "scipy.sparse", "scipy.stats", "sklearn.cluster", "sklearn.linear_model",
    "torch", "tokenizers", "transformers", "transformers.models.gpt2.modeling_gpt2", "yaml",
)  # fmt: skip
# What stands on the search path as `python`. Without site-packages it starts in hundredths of a second.
CLIENT = """#!{python} -SE
import json, os, socket, sys
if sys.argv[1:2] != ["-m"] or not sys.argv[2].startswith("src."):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as server:
    server.connect({path!r})
    asked = json.dumps([os.getcwd(), dict(os.environ), sys.argv[2:]]).encode()
    socket.send_fds(server, [len(asked).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(asked)
    code = server.recv(4)
raise SystemExit(int.from_bytes(code, "big") if code else 1)
"""


@contextmanager
def python(folder: Path, env: dict[str, str]) -> Iterator[dict[str, str]]:
    """Inside the block the environment that is given has a `python` which forks; ``env``: what it is made of."""
    folder.mkdir()
    path = folder / "socket"
    client = folder / "python"
    client.write_text(CLIENT.format(python=sys.executable, path=str(path)))
    client.chmod(0o755)
    words = [sys.executable, __file__, str(path)]
    with subprocess.Popen(words, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdin is not None and server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        try:
            yield {**env, "PATH": f"{folder}{os.pathsep}{env['PATH']}"}
        finally:
            server.stdin.close()  # its end is the end of the server
            server.wait()


def serve(path: str) -> None:
    """Fork for each connection, until standard input ends."""
    for name in LIBRARIES:
        importlib.import_module(name)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _kept(connection)
            connection.close()
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def _kept(connection: socket.socket) -> None:
    """Run one command in a process of its own, so that its exit code can be told however it ends."""
    size, streams, _, _ = socket.recv_fds(connection, 4, 3)
    asked = b""
    while len(asked) < int.from_bytes(size, "big"):
        asked += connection.recv(1 << 16)
    if (worker := os.fork()) == 0:
        connection.close()
        _work(streams, *json.loads(asked))
    code = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    connection.sendall((code if code >= 0 else 128 - code).to_bytes(4, "big"))
    os._exit(0)


def _work(streams: list[int], folder: str, env: dict[str, str], words: list[str]) -> None:
    """Do what `python -m WORDS` does in ``folder``."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    sys.path[0] = folder
    sys.executable = str(Path(sys.argv[1]).with_name("python"))  # so that what it starts is forked, too
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    raise SystemExit(0)


if __name__ == "__main__":
    serve(sys.argv[1])
