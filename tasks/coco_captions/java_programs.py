"""The two Java programs of pycocoevalcap: the Penn Treebank tokeniser and METEOR, run from the package's folder.

They are started here and not by the package's own classes: its tokeniser writes into the installed package and is put
out of step by other line breaks than "\\n" in a caption, and its METEOR waits for ever once the program has ended.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

# pycocoevalcap's own command lines, but in UTF-8 whatever the locale is.
UTF_8 = "-Dfile.encoding=UTF-8"
STANFORD = ("-cp", "stanford-corenlp-3.4.1.jar", "edu.stanford.nlp.process.PTBTokenizer")
TOKENISER = (*STANFORD, "-preserveLines", "-lowerCase")
METEOR = ("-jar", "-Xmx2G", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm")
SEPARATOR = "|||"  # of METEOR's fields
SHOWN_ERROR = 300  # characters of what a program says when it fails

Captions = Mapping[int, Sequence[str]]


def find_java() -> str:
    """The Java program: of JAVA_HOME, or on the search path.

    Raises:
        FileNotFoundError: says how to install it.
    """
    home = os.environ.get("JAVA_HOME")
    found = (shutil.which("java", path=str(Path(home, "bin"))) if home else None) or shutil.which("java")
    if found is None:
        raise FileNotFoundError(
            "Java is not found. The official tokeniser and METEOR are Java programs, and without that tokeniser no "
            "caption metric is comparable. Install a Java runtime (apt install default-jre-headless, or conda install "
            "openjdk) or set JAVA_HOME to one."
        )
    return found


def tokenise(captions: Captions, *, java: str, package: Path) -> dict[int, list[str]]:
    """Captions in lower case, a blank between tokens, without punctuation.

    The tokeniser looks across lines, so a token may depend on the caption that follows: keep the order of the images.

    Args:
        captions: by image id.
        java: the Java program.
        package: folder of pycocoevalcap.

    Raises:
        ChildProcessError: the tokeniser failed.
    """
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

    # Any line break in a caption, of which Unicode has several, would shift all that follow.
    lines = [" ".join(caption.splitlines()) for group in captions.values() for caption in group]
    run = subprocess.run(
        [java, UTF_8, *TOKENISER],
        cwd=package / "tokenizer",
        input="\n".join([*lines, ""]).encode(),
        capture_output=True,
        check=False,
    )
    made = run.stdout.decode().split("\n")[: len(lines)]
    if run.returncode or len(made) < len(lines):
        raise ChildProcessError(_failure("The tokeniser", f"gave {len(made)} of {len(lines)} captions", run.stderr))
    # At single blanks alone: some tokens, as "1 1/2", hold another kind of blank.
    texts = iter(" ".join(word for word in line.rstrip().split(" ") if word not in PUNCTUATIONS) for line in made)
    return {id: [next(texts) for _ in group] for id, group in captions.items()}


class Meteor:
    """METEOR's process. It takes seconds to start, is asked line by line and answers line by line.

    Args:
        java: the Java program.
        package: folder of pycocoevalcap.
    """

    def __init__(self, *, java: str, package: Path) -> None:
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  (open as long as the process; a pipe could fill up)
        self.process = subprocess.Popen(
            [java, UTF_8, *METEOR],
            cwd=package / "meteor",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            encoding="utf-8",
        )

    def score(self, candidates: Captions, references: Captions) -> tuple[float, list[float]]:
        """The score of the set and of each image.

        Args:
            candidates: tokenised, one by image id.
            references: tokenised, of the same images.

        Raises:
            ChildProcessError: the process has ended.
        """
        statistics = []
        for id, (candidate,) in candidates.items():
            self._send("SCORE", *map(_field, references[id]), _field(candidate))
            statistics.append(self._answer())
        self._send("EVAL", *statistics)
        each = [float(self._answer()) for _ in statistics]
        return float(self._answer()), each

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        with suppress(BrokenPipeError):
            self.process.communicate()
        self.errors.close()

    def _send(self, *fields: str) -> None:
        with suppress(BrokenPipeError):  # it has ended, and `_answer` says so
            self.process.stdin.write(f" {SEPARATOR} ".join(fields) + "\n")
            self.process.stdin.flush()

    def _answer(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            raise ChildProcessError(_failure("METEOR", "ended before it had scored all captions", self.errors.read()))
        return line.strip()


def _field(text: str) -> str:
    return text.replace(SEPARATOR, "").replace("  ", " ")


def _failure(program: str, what: str, errors: bytes) -> str:
    said = " ".join(errors.decode(errors="replace").split())[:SHOWN_ERROR] or "nothing"
    return f"{program} (a Java program) {what}. It said: {said} - Is Java whole, and is there memory for it (2 GB)?"
