"""Telling people: messages over apprise to the addresses in FLEXTOK_NOTIFY (mail, Slack, a webhook; one a line or word)."""

import os

from flextok.errors import TransientError, UsageError

ADDRESSES = "FLEXTOK_NOTIFY"


def is_wanted() -> bool:
    """Whether anybody is to be told."""
    return bool(os.environ.get(ADDRESSES, "").split())


def notify(title: str, lines: list[str]) -> None:
    """Send one message to every address.

    Raises UsageError for an address that is none, TransientError where one did not take it. No address is told in either:
    they hold tokens and passwords.
    """
    import apprise

    addresses = os.environ.get(ADDRESSES, "").split()
    sender = apprise.Apprise()
    for number, address in enumerate(addresses, start=1):
        if not sender.add(address):
            raise UsageError(
                f"expected addresses of apprise in {ADDRESSES} (such as mailto://... or json://HOST/), found another word in "
                f"place {number} of {len(addresses)}"
            )
    if not sender.notify(title=title, body="\n".join(lines)):
        raise TransientError(
            f"could not send to each of the {len(addresses)} addresses in {ADDRESSES}; it is tried again"
        )
