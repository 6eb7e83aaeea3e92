"""The token by which the processes of a Ray cluster know each other, from the places where Ray itself looks for it.

Ray asks for a token on every cluster that was started where one was found, and looks for one only where RAY_AUTH_MODE says
so. Here a token that is there is used by itself. A session on this machine has one of its own, which lies in no file.
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
REFUSED = "InvalidAuthToken"
"""What Ray's core says of a token that is missing or another's."""
HOW = (
    f"give the one of its head (`ray get-auth-token` prints it there) by {TOKEN}, a file that {TOKEN_PATH} names, or "
    f"{DEFAULT_FILE}"
)


def use_own_token() -> bool:
    """Give a Ray that is about to start here a token that only its processes know; False where RAY_AUTH_MODE is set."""
    if MODE in os.environ:
        return False
    os.environ[MODE], os.environ[TOKEN] = "token", secrets.token_hex(32)
    _read_again()
    return True


def forget_own_token() -> None:
    """Undo `use_own_token`, for whatever cluster this process turns to next."""
    for name in (MODE, TOKEN):
        os.environ.pop(name, None)
    _read_again()


def use_token_that_is_there() -> None:
    """Turn to a cluster with the token of this user, if there is one and RAY_AUTH_MODE says nothing else.

    Raises UsageError where a variable names a file that cannot be read.
    """
    if token_place() and MODE not in os.environ:
        os.environ[MODE] = "token"
        _read_again()


def token_place() -> str | None:
    """Where a token is: the variable or the file; None where there is none."""
    if os.environ.get(TOKEN):
        return TOKEN
    named = os.environ.get(TOKEN_PATH)
    path = Path(named or DEFAULT_FILE).expanduser()
    if path.is_file() and os.access(path, os.R_OK):
        return f"{path} ({TOKEN_PATH})" if named else DEFAULT_FILE
    if named:
        raise UsageError(f"expected a file with Ray's authentication token at {path} ({TOKEN_PATH}), found none")
    return None


def refusal(address: str) -> str:
    """What to say where the cluster at `address` refused this process."""
    place = token_place()
    found = f"it refused the one in {place}" if place else "none is here"
    return f"expected the authentication token of the Ray cluster at {address}, found that {found}; {HOW}"


def _read_again() -> None:
    """Ray's core reads the environment once, when it is imported."""
    if "ray" in sys.modules:
        from ray._raylet import AuthenticationTokenLoader, Config  # pyright: ignore[reportAttributeAccessIssue]

        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()
