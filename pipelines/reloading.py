"""An edited profile takes effect while `flextok ui` goes on: new settings, corpora and schedules, with no end to runs at work."""

import logging
from collections.abc import Sequence

from flextok.errors import UsageError
from pipelines.recipe import check_together, load_recipe, profile_path

logger = logging.getLogger(__name__)

LOCATION = "pipelines.definitions"
"""What Dagster calls the code location: the module that `flextok ui` gives it."""


class Reloader:
    """Has Dagster's processes read the code location again once a profile's file is another one than before."""

    def __init__(self, profiles: Sequence[str], sets: Sequence[str], port: int):
        self._profiles, self._sets, self._port = profiles, sets, port
        self._seen = self._contents()

    def look(self) -> None:
        """Reload if a file has changed. One with an error is told once, and what was read before goes on."""
        contents = self._contents()
        if contents == self._seen:
            return
        try:
            check_together([load_recipe(profile, self._sets) for profile in self._profiles])
        except UsageError as error:
            logger.warning("%s; until that is mended the profile as it was before goes on", error)
            self._seen = contents
        else:
            if self._reload():
                self._seen = contents

    def _reload(self) -> bool:
        # Dagster's client, which only an edited profile needs, takes half a second to import.
        from dagster_graphql import DagsterGraphQLClient, DagsterGraphQLClientError, ReloadRepositoryLocationStatus

        try:
            client = DagsterGraphQLClient("127.0.0.1", port_number=self._port)
            found = client.reload_repository_location(LOCATION)
        except (OSError, DagsterGraphQLClientError) as error:
            logger.debug("Dagster's UI does not answer yet: %s", error)
            return False
        if found.status is ReloadRepositoryLocationStatus.SUCCESS:
            logger.info("the profile was edited: what it says now is in force")
            return True
        logger.warning("expected Dagster to read the profile again, found: %s", found.message)
        return True

    def _contents(self) -> list[bytes | None]:
        """Of each profile's file; None for one that cannot be read, as in the midst of its replacement."""
        return [_content(profile) for profile in self._profiles]


def _content(profile: str) -> bytes | None:
    try:
        return profile_path(profile).read_bytes()
    except (OSError, UsageError):
        return None
