"""What can be refused before hours are spent: missing data, impossible settings, implausible teachers."""

from __future__ import annotations

from collections.abc import Callable

from attacks.tables import ATTACKS
from attacks.threat import ThreatModel
from bench import store
from bench.cards import Conditions, ensure
from bench.errors import UsageError
from bench.jobs import EvalJob, Plan, TrainJob
from bench.models import build
from bench.parts import limit, load
from bench.schedule import Site
from bench.stepping import why_whole
from bench.teachers import load_teacher
from bench.train import build_method
from bench.usual import teacher_flag


def preflight(plan: Plan, site: Site, note: Callable[[str], None] = lambda sentence: None) -> None:
    """Read the data once, build every method, attack and model of other hands, and judge teachers that are given.

    A given teacher gets its card here, see `bench.cards`. Jobs that are done already are passed over; a plan without
    others costs nothing.

    Args:
        plan: what is to be done.
        site: folders and plug-ins.
        note: receives a sentence before anything that takes time.

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
    for name in {job.model for job in missing if isinstance(job, TrainJob) and ":" in job.model}:
        build(name, parts.num_classes, *parts.image[:2], seed=0)
    for kind, n in {(isinstance(job, TrainJob), _limit(job)) for job in missing}:
        if n is not None:
            limit(parts.train if kind else parts.test, n, "--train-limit" if kind else "--limit")
    given = {
        source.get("file", source["label"]): (source, job, f"{teacher_flag(role)}-model")
        for job in missing
        if isinstance(job, TrainJob)
        for role, source in job.teachers.items()
        if "key" not in source
    }
    limits = [job.limit for job in plan.evaluate if job.limit is not None]
    largest = max(limits) if limits and len(limits) == len(plan.evaluate) else None
    for source, job, flag in given.values():
        teacher = load_teacher(source, job, parts, site.out, site.data_dir, site.download, flag=flag)
        under = Conditions(job.norm, job.eps, largest, job.device, job.threads, job.deterministic)
        ensure(source, teacher, parts, under, out=site.out, data_dir=site.data_dir, note=note)


def _limit(job: TrainJob | EvalJob) -> int | None:
    return job.train_limit if isinstance(job, TrainJob) else job.limit


def _build(job: TrainJob | EvalJob) -> None:
    if isinstance(job, TrainJob):
        method = build_method(job, job.settings["num_classes"])
        why_whole(job, method, job.processes)
        if method.drops_rows and job.sync_bn:
            raise ValueError(
                f"{job.title}: may leave a process without samples, and --sync-bn waits for all; leave out --sync-bn"
            )
    else:
        ATTACKS[job.attack](threat=ThreatModel(job.norm, job.eps), **job.settings)  # type: ignore[arg-type]
