"""featcache handoff."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache import trust
from featcache.trust import allow_flags
from featcache_cli.options import shared
from featcache_cli.output import Allow, Force, Json, Quiet, emit, in_shell, open_trial, say

if TYPE_CHECKING:
    from featcache.models import Certificate
    from featcache.sweeps import Chosen

Trial = Annotated[str, typer.Argument(metavar="RUN@TRIAL", help="RUN@best or RUN@3.")]
Moved = Annotated[Path | None, shared("images")]


def command(
    trial: Trial,
    out: Annotated[Path, typer.Option("--out", "-o", help="The model to write.")],
    force: Force = False,
    images: Moved = None,
    allow: Allow = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make one Keras model of backbones and head, and print the proof that it computes the same.

    A head without an exact form in Keras (forest, boosting, knn) is taught to a dense head; the agreement is printed.

    Example: featcache handoff photos.run@best -o model.keras
    """
    from featcache.models import Probe, hand_off

    trust.allow(*(allow or ()))
    chosen = open_trial(trial)
    if not chosen.trial.handoff and not quiet:
        head = chosen.trial.head
        say(f"{head} has no exact form in Keras: training a dense head on its predictions, which takes a while")
    probe = Probe.open(chosen, images)
    certificate = hand_off(probe, out, force=force).certificate
    # RUN@refit was fitted on validation images too, so fine-tuning has none to choose an epoch on.
    if chosen.refit:
        next_command = f"predict {in_shell(out)} IMAGES"
    else:
        next_command = f"finetune {in_shell(trial)} -o tuned.keras{allow_flags(probe.own_code)}"
    lines = [text(certificate), calibration(chosen), f"Model: {out}", f"Next: featcache {next_command}"]
    emit(json, document(out, certificate), lambda: "\n".join(lines))


def document(out: Path, certificate: Certificate) -> dict[str, Any]:
    """Return the certificate as it stands in JSON."""
    parity = {"inference": certificate.inference, "training": certificate.training}
    return {
        "model": str(out),
        "parity": parity,
        "agreement": certificate.agreement,
        "images": certificate.images,
        "tolerance": certificate.tolerance,
        "distilled": certificate.distilled,
        "precision": certificate.precision,
        "probabilities": certificate.probabilities,
    }


def text(certificate: Certificate) -> str:
    """Return the certificate as a person reads it."""
    from featcache.text import counted

    parity = (
        f"Parity on {counted(certificate.images, 'image')}: largest logit difference "
        f"{certificate.inference:.1e} in inference, {certificate.training:.1e} in training; "
        f"same class on {certificate.agreement:.1%}."
    )
    if certificate.probabilities is not None:
        parity += (
            f"\nThe head was fitted on {certificate.precision} features, and the model computes in float32: its "
            f"probabilities differ by at most {certificate.probabilities:.1e} on these images."
        )
    if certificate.distilled is None:
        return parity
    agreement = f"same class on {certificate.distilled:.1%} of the images that chose"
    return f"{parity}\nThe head has no exact form in Keras; a dense one learnt from it: {agreement}."


def calibration(chosen: Chosen) -> str:
    """Return the number of images on which the probabilities of a trial were calibrated, or why they are not."""
    from featcache.text import counted

    if chosen.trial.log_loss is None:
        return f"Probabilities are not calibrated: {chosen.trial.head} only names a class."
    if chosen.trial.temperature == 1:
        return "Probabilities are not calibrated: the run is of an earlier featcache."
    return f"Probabilities were calibrated on {counted(chosen.run.num_select, 'image')}."
