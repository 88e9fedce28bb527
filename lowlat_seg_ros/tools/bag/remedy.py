"""What to do about a bag that cannot be read: by what is found on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

#: The newest version of metadata.yaml that is read (rosbag2 of ROS 2 Jazzy and Kilted).
NEWEST = 9

#: What git leaves in a file's place where Git LFS has not fetched it.
_LFS = b"version https://git-lfs"

_GIVE = "give the folder with metadata.yaml, or one .mcap or .db3 file"


def remedy(path: Path) -> str:
    """The sentence on the bag ``path``, a folder or a file, that could not be opened or read."""
    packed = [file for file in _files(path) if file.suffix in (".zstd", ".zst")]
    if packed and not (path / "metadata.yaml").exists():
        return f"it is compressed: unpack it with 'zstd -d {packed[0]}'"
    files = [file for file in _files(path) if file.suffix in (".mcap", ".db3")]
    if pointer := next((file for file in files if _begin(file).startswith(_LFS)), None):
        return f"{pointer} only stands for the file in Git LFS: fetch it with 'git lfs pull'"
    if path.is_dir() and (sentence := _metadata(path, files)):
        return sentence
    if not files:
        return _GIVE
    if empty := next((file for file in files if not file.stat().st_size), None):
        return (
            f"{empty} is empty, as where the recorder was killed before it wrote anything: record "
            "it again, or take it out of its folder and run 'ros2 bag reindex' on the folder"
        )
    file, whole = files[0], files[0].with_stem(f"{files[0].stem}_recovered")
    if file.suffix == ".mcap":
        recover = f"'mcap recover {file} -o {whole}' (the command mcap is at https://mcap.dev)"
    else:
        recover = f"'sqlite3 {file} .recover | sqlite3 {whole}'"
    return (
        f"a recorder that was killed or a full disk leaves such files: save what is whole with "
        f"{recover}, and give that file; or put it into the old one's place in its folder and "
        "run 'ros2 bag reindex' on the folder"
    )


def _metadata(folder: Path, files: list[Path]) -> str:
    """What is wrong with a folder's metadata.yaml, and the remedy; empty if nothing is."""
    path = folder / "metadata.yaml"
    anew = f"write it anew with 'ros2 bag reindex {folder}'"
    if not path.exists():
        return f"metadata.yaml is missing: {anew}" if files else _GIVE
    try:
        content: dict[str, Any] = yaml.safe_load(path.read_bytes())["rosbag2_bagfile_information"]
        names, version = [*content["relative_file_paths"]], int(content["version"])
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return f"metadata.yaml is damaged: {anew}"
    if version > NEWEST:
        return (
            f"metadata.yaml has version {version}, of a newer ROS 2: try a newer library (pip "
            "install --upgrade rosbags)"
        )
    # Some recorders write the folder's name into it as well.
    lost = [name for name in names if not (folder / Path(name).name).exists()]
    if lost:
        return (
            f"metadata.yaml names {lost[0]}, which is not there: copy it there, or, where it has "
            f"another name, {anew}"
        )
    return ""


def _files(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if path.is_dir() else [path] * path.is_file()


def _begin(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(len(_LFS))
