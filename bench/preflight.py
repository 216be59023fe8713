"""What can be refused before hours are spent: missing data, impossible settings, implausible teachers."""

from __future__ import annotations

from attacks.tables import ATTACKS
from attacks.threat import ThreatModel
from bench import store
from bench.errors import UsageError
from bench.jobs import EvalJob, Plan, TrainJob
from bench.parts import limit, load
from bench.schedule import Site
from bench.teachers import load_teacher
from bench.train import build_method


def preflight(plan: Plan, site: Site) -> None:
    """Read the data once, build every method and attack, and judge teachers that are given.

    Jobs that are done already are passed over; a plan without others costs nothing.

    Raises:
        UsageError: for the first thing that cannot work.
        BenchError: if a given teacher is refused.
    """
    missing = [job for job in plan.jobs if not store.is_done(site.out / job.folder)]
    if not missing:
        return
    for job in missing:
        try:
            _build(job)
        except (TypeError, ValueError) as error:
            raise UsageError(str(error)) from None
    parts = load(missing[0].dataset, site.data_dir, download=site.download)
    for kind, n in {(isinstance(job, TrainJob), _limit(job)) for job in missing}:
        if n is not None:
            limit(parts.train if kind else parts.test, n, "--train-limit" if kind else "--limit")
    given = {
        source["label"]: (source, job)
        for job in missing
        if isinstance(job, TrainJob)
        for source in job.teachers.values()
        if "key" not in source
    }
    for source, job in given.values():
        load_teacher(source, job, parts, site.out, site.data_dir, site.download)


def _limit(job: TrainJob | EvalJob) -> int | None:
    return job.train_limit if isinstance(job, TrainJob) else job.limit


def _build(job: TrainJob | EvalJob) -> None:
    if isinstance(job, TrainJob):
        method = build_method(job, job.settings["num_classes"])
        if method.couples_batch and (job.micro_batch is not None or job.processes > 1):
            what = "--micro-batch" if job.processes == 1 else "torchrun"
            raise ValueError(f"{job.title}: couples the samples of a batch, which must stay whole; leave out {what}")
    else:
        ATTACKS[job.attack](threat=ThreatModel(job.norm, job.eps), **job.settings)  # type: ignore[arg-type]
