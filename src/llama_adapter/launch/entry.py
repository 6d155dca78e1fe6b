"""The frame around both scripts: run folders that are named again, and errors that end in one sentence."""

import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from omegaconf import OmegaConf

from llama_adapter.failures import failure
from llama_adapter.launch.requeue import automatic_arguments, settled_text, started_arguments
from llama_adapter.launch.schema import register_schemas, suggestion

FULL_ERROR = "HYDRA_FULL_ERROR"
ONE_SENTENCE = "LLAMA_ADAPTER_ONE_SENTENCE"  # set by us: other devices' processes then know it was not the user

typed: list[str] = []  # the arguments that the user gave this time, without those of a resumed run


def run(main: Callable[[], None], *, restore: str) -> None:
    """Runs a Hydra main function.

    Args:
        main: decorated with `hydra.main`.
        restore: the key whose value may be a run folder, whose overrides are then put before the typed ones:
            `resume` continues in that folder (`auto`: in the one of hydra.run.dir, if there is something to continue),
            `adapter_path` only reads from it.

    An error becomes one sentence and exit status 1, unless the user has set HYDRA_FULL_ERROR=1. A run that was told to
    stop exits with 128 plus the signal's number, as shells expect.
    """
    os.environ.setdefault("PROJECT_ROOT", str(Path(sys.argv[0]).resolve().parent))
    wants_trace = os.environ.get(FULL_ERROR) == "1" and ONE_SENTENCE not in os.environ
    if not wants_trace:
        os.environ[FULL_ERROR] = os.environ[ONE_SENTENCE] = "1"  # hydra then leaves the error to us
    register_schemas()
    register_resolvers()
    typed[:] = sys.argv[1:]
    try:
        arguments = automatic_arguments(typed) if restore == "resume" else typed
        if arguments is None:
            return
        arguments = restored_arguments(arguments, restore)
        sys.argv[1:] = started_arguments(arguments) if restore == "resume" else arguments
        main()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # of which Lightning makes an exit with status 1
            sys.exit(128 + getattr(end.__context__, "signal_number", signal.SIGINT))
        if type(end).__name__ == "SIGTERMException":  # Lightning's, in the seconds before the training; it would be a 0
            sys.exit(128 + signal.SIGTERM)
        raise
    except Exception as error:
        number = getattr(error, "signal_number", None)
        if number is not None:
            sys.exit(128 + number)
        if wants_trace:
            raise
        _fail(error)
    except Ended as end:
        _fail(end.error)


class Ended(BaseException):
    """Ends the run with the sentence of an error, from within what makes a warning of an exception: a Hydra callback.

    Attributes:
        error: what ended it.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


def _fail(error: BaseException) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.write(f"\nerror: {sentence(error)}\n")
    sys.exit(1)


def restored_arguments(arguments: Sequence[str], key: str) -> list[str]:
    """The command line with the overrides of the run folder that `key` names put in front.

    A stored override is left out where the same key is typed again, since Hydra takes an option or a `+key` only once;
    `+key=1` stays in front of a typed `key=2`, which needs it. The folder's name is quoted for Hydra: folders of sweep
    jobs have commas and equals signs in theirs.

    Args:
        arguments: as typed.
        key: `resume` or `adapter_path`.

    Raises:
        FileNotFoundError: `resume` names no run folder.
    """
    arguments = list(arguments)
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    value = given.get(key)
    if value in (None, "null", ""):
        return arguments
    folder = Path(value if Path(value).exists() else value.strip("'\""))
    if folder.exists():
        arguments = [f"{key}={quoted(folder)}" if a.startswith(f"{key}=") else a for a in arguments]
    stored = folder / ".hydra" / "overrides.yaml"
    if not stored.is_file():
        if key == "resume":
            raise FileNotFoundError(f"resume={folder} is no run folder: it has no .hydra/overrides.yaml.")
        return arguments
    names = {_name(name) for name in given} | {key, "resume", "plan", "sweep"}  # a job of a sweep is no sweep
    needed = {f"+{name}" for name in given}
    stored_overrides = [(override.split("=", 1)[0], override) for override in OmegaConf.create(settled_text(stored))]
    stored_overrides = [pair for pair in stored_overrides if not pair[0].startswith("sweep.")]
    kept = [override for name, override in stored_overrides if _name(name) not in names or name in needed]
    kept = [override for override in kept if override not in arguments]  # a key can be deleted only once
    if key == "resume":
        arguments.append(f"hydra.run.dir={quoted(folder)}")
    return kept + arguments


def job_folder(number: int, overrides: str) -> str:
    """The folder of a sweep's job: its number, and as much of its overrides as a file name may hold.

    Args:
        number: of the job.
        overrides: `key=value,...`; slashes in them would make folders within folders.
    """
    return re.sub(r"[/\\]", "_", f"{number}_{overrides}")[:100].rstrip("_., ")


def sweep_group(folder: str, otherwise: str) -> str:
    """What stands together with a run: the other jobs of its sweep, whichever launcher started them.

    Args:
        folder: of the run.
        otherwise: the answer for a run that is in no sweep.
    """
    sweep = Path(os.path.abspath(folder)).parent
    return sweep.name if (sweep / "sweep.csv").is_file() else otherwise  # which is there before the first job


def register_resolvers() -> None:
    """Makes `${job_folder:...}` and `${sweep_group:...}` known to configurations."""
    for resolver in (job_folder, sweep_group):
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)


def _name(key: str) -> str:
    return key.lstrip("+~")


def quoted(path: Path) -> str:
    """A path as a value on the command line that Hydra reads as it is."""
    # In Hydra's grammar a backslash is one, except before a quote.
    text = re.sub(r"\\+(?='|$)", lambda match: match[0] * 2, str(path))
    return "'" + text.replace("'", "\\'") + "'"


def sentence(error: BaseException) -> str:
    """What went wrong, on one line, in the user's words."""
    from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    if missing := re.search(r"Missing mandatory value: ([\w.]+)", str(error)):
        return f"{missing[1]} has no value. Give it: {missing[1]}=<value>."
    if isinstance(error, MissingConfigException):
        return _missing_option(error)
    if isinstance(error, OverrideParseException):
        return f"Cannot read the argument {error.override!r}: {_first_line(error)}"
    if isinstance(error, ConfigCompositionException):
        return _composition(error)
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return f"{error.full_key}: {_first_line(error)}"
    if of_another := failure(error):
        return of_another
    if isinstance(error, (ValueError, OSError, ArithmeticError, HydraException, OmegaConfBaseException)):
        return " ".join(str(error).split())
    return f"{type(error).__name__}: {' '.join(str(error).split())} Set {FULL_ERROR}=1 to see where it comes from."


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]


def _missing_option(error) -> str:
    match = re.search(r"'([^']+)'", str(error).split("Could not")[-1])
    group, _, given = (match[1] if match else str(error.missing_cfg_file)).rpartition("/")
    options = _files_of(group) or sorted(error.options or [])
    return f"{group}={given} does not exist. Choose {', '.join(options)}.{suggestion(given, options)}"


def _files_of(group: str) -> list[str]:
    folder = Path(os.environ["PROJECT_ROOT"]) / "conf" / group
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def _composition(error) -> str:
    cause, message = error.__cause__, " ".join(str(error).split())
    match = re.search(r"Could not override '([^']+)'|Error merging override ([^=\s]+)", message)
    if match is None:
        return message
    key = match[1] or _name(match[2])
    if type(cause).__name__ in ("ConfigAttributeError", "ConfigKeyError", "ConfigTypeError"):
        known = [name for name in known_keys() if name != key]  # of the default task: another may lack it
        return f"Unknown key {key!r}.{suggestion(key, known)}"
    return f"{key}: {_first_line(cause or error)}."


def known_keys() -> list[str]:
    """Every key of the script's default configuration, dotted."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(Path(os.environ["PROJECT_ROOT"]) / "conf"), version_base="1.3"):
        script = "evaluate" if Path(sys.argv[0]).stem == "evaluate" else "train"
        config = OmegaConf.to_container(compose(script), resolve=False)
    keys: list[str] = []

    def collect(node: dict, prefix: str) -> None:
        for key, value in node.items():
            keys.append(f"{prefix}{key}")
            if isinstance(value, dict):
                collect(value, f"{prefix}{key}.")

    collect(config, "")
    return keys
