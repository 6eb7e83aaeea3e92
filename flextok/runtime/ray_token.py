"""The token by which the processes of a Ray cluster know each other, from the places where Ray itself looks for it.

Ray looks for a token only where RAY_AUTH_MODE says so, and a process that has the mode refuses the calls of a cluster that
has not. So the head is asked first: a token that is there is used where one is wanted. A session on this machine has one
of its own, which lies in no file.
"""

import os
import secrets
import sys
from pathlib import Path

from flextok.errors import UsageError

MODE = "RAY_AUTH_MODE"
TOKEN = "RAY_AUTH_TOKEN"
TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"
DEFAULT_FILE = "~/.ray/auth_token"
HOW = (
    f"give the one of its head (`ray get-auth-token` prints it there) by {TOKEN}, a file that {TOKEN_PATH} names, or "
    f"{DEFAULT_FILE}"
)
# Any call that a head answers to everybody who may call at all.
CALL = "/ray.rpc.NodeInfoGcsService/CheckAlive"
ANSWER_WITHIN_S = 10.0
_set_here: list[str] = []


def use_own_token() -> None:
    """Give a Ray that is about to start here a token that only its processes know, unless RAY_AUTH_MODE is set."""
    if MODE not in os.environ:
        _set({MODE: "token", TOKEN: secrets.token_hex(32)})


def use_wanted_token(address: str) -> None:
    """Turn to the cluster at host:port with the token of this user if it wants one.

    Raises UsageError where it does and none is here, the one that is here is another's, or a variable names no file.
    """
    if _answers(address):
        return
    token, place = _token()
    if not token:
        raise UsageError(f"{_expected(address)}, found that none is here; {HOW}")
    if not _answers(address, token):
        raise UsageError(f"{_expected(address)}, found that it refused the one in {place}; {HOW}")
    if MODE not in os.environ:
        _set({MODE: "token"})


def forget_token() -> None:
    """Undo what the others set, for whatever cluster this process turns to next."""
    if _set_here:
        for name in _set_here:
            os.environ.pop(name, None)
        _set_here.clear()
        _read_again()


def _expected(address: str) -> str:
    return f"expected the authentication token of the Ray cluster at {address}"


def _answers(address: str, token: str = "") -> bool:
    """Whether a head lets this process in, with a token or without. What else may be wrong is for Ray itself to say."""
    import grpc

    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(CALL)(b"", timeout=ANSWER_WITHIN_S, metadata=metadata)
        except grpc.RpcError as error:
            return error.code() != grpc.StatusCode.UNAUTHENTICATED  # pyright: ignore[reportAttributeAccessIssue]
    return True


def _token() -> tuple[str, str]:
    """The token of this user and where it lies; "" for none."""
    if os.environ.get(TOKEN):
        return os.environ[TOKEN].strip(), TOKEN
    named = os.environ.get(TOKEN_PATH)
    path = Path(named or DEFAULT_FILE).expanduser()
    try:
        return path.read_text().strip(), f"{path} ({TOKEN_PATH})" if named else DEFAULT_FILE
    except OSError as error:
        if named:
            raise UsageError(
                f"expected a file with Ray's authentication token at {path} ({TOKEN_PATH}), found: {error.strerror}"
            ) from None
        return "", ""


def _set(values: dict[str, str]) -> None:
    os.environ.update(values)
    _set_here.extend(values)
    _read_again()


def _read_again() -> None:
    """Ray's core reads the environment once, when it is imported."""
    if "ray" in sys.modules:
        from ray._raylet import AuthenticationTokenLoader, Config  # pyright: ignore[reportAttributeAccessIssue]

        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()
