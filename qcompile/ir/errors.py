"""Errors a user can cause or act upon; each message says what was found, what is needed, what to do."""

from __future__ import annotations

__all__ = [
    "BackendMissingError",
    "BudgetError",
    "CalibrationError",
    "ModelError",
    "OptionError",
    "OutputError",
    "PassError",
    "QCompileError",
    "TargetError",
]


class QCompileError(Exception):
    """Base of all errors that qcompile reports as one clear line instead of a traceback.

    Attributes:
        exit_code: what the command line returns for it (2 bad input or options, 3 gate not met,
            4 hardware or runtime missing and required, 1 internal error).
    """

    exit_code: int = 2


class ModelError(QCompileError):
    """The model cannot be read, is not valid ONNX, or holds what cannot be compiled."""


class CalibrationError(QCompileError):
    """The calibration data do not fit the model, or cannot be used (empty, NaN, wrong dtype)."""


class TargetError(QCompileError):
    """The target or device is unknown, or the model needs what the target does not have."""


class OptionError(QCompileError):
    """An option has a value that cannot be used, or options contradict one another."""


class OutputError(QCompileError):
    """The output cannot be written, or exists and is not ours to replace."""


class BudgetError(QCompileError):
    """A limit given by the user (memory, time) cannot be kept."""


class BackendMissingError(QCompileError):
    """The runtime that is needed is not installed, or two builds of it overwrite each other."""

    exit_code = 4


class PassError(QCompileError):
    """A pass broke an invariant of the graph: a defect of qcompile, not of the user's model."""

    exit_code = 1
