"""What the tests of this folder share beside fixtures."""

from pathlib import Path

SHARDS = 6
IMAGES = 20 * SHARDS


def processes_below(pid: int) -> dict[int, str]:
    """Command lines of all processes started by `pid`, directly or not."""
    parents, commands = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text().rpartition(")")[2].split()
                commands[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            parents[int(folder.name)] = int(stat[1])

    def below(child: int) -> bool:
        while child in parents and child != pid:
            child = parents[child]
        return child == pid

    return {child: commands[child] for child in parents if child != pid and below(child)}
