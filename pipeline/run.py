"""One run of `gvm-prep encode`: what is left to do, done, and reported."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

from tqdm import tqdm

from pipeline.cache import FeatureCache
from pipeline.code_cache import CodeCache
from pipeline.device_engine import DeviceEngine, own_devices
from pipeline.encode import Progress
from pipeline.engines import Engine, LocalEngine
from pipeline.failures import FATAL_ERRNO
from pipeline.feature_scales import calibrate, feature_codec, refuse_other_clip
from pipeline.folder import DataFolder, planned_frames, ranges
from pipeline.manifest import Segment
from pipeline.plan import ShardPlan
from pipeline.publish import discard
from pipeline.selection import (
    EncodeConfig,
    chosen_shards,
    refuse_other_settings,
    settled,
    split_complete,
)
from pipeline.tidy import Tidier
from shards.feature_codec import with_codec
from shards.record import ShardRecord
from shards.spec import failures_path


@dataclass(frozen=True)
class Report:
    """What a run did."""

    num_planned: int  # shards that were asked for
    num_outside: int  # other planned shards that are not complete
    made: list[ShardRecord]
    complete: list[ShardRecord]  # before the run
    progress: Progress
    seconds: float

    @property
    def num_failed(self) -> int:
        """Segments that failed in this run."""
        return sum(len(record.left_out) for record in self.made)

    def lines(self, data: DataFolder, config: EncodeConfig) -> list[str]:
        """The report for a person."""
        num_busy = self.num_planned - len(self.made) - len(self.complete)
        lines = []
        if config.shards != "all" and "/" not in config.shards:
            asked = sum(len(numbers) for numbers in ranges(config.shards))
            lines.append(f"{self.num_planned} of the {asked} shards {config.shards} hold segments")
        lines += [
            f"{data.shards}: {len(self.made)} shards made, {len(self.complete)} complete before; "
            f"{self.progress.num_encoded} frames encoded in {self.seconds:.1f} s, "
            f"{self.progress.num_encoded / self.seconds:.1f} a second"
        ]
        if self.num_outside and "/" not in config.shards:
            lines.append(f"  {self.num_outside} planned shards lie outside of these. All: gvm-prep encode")
        if self.progress.num_cached:
            lines.append(f"  {self.progress.num_cached} frames came from the cache")
        if num_saturated := sum(record.num_saturated for record in self.made):
            lines.append(f"  {num_saturated} values lay beyond the range that int8 was calibrated to")
        if num_busy:
            lines.append(f"  {num_busy} shards were left to another process")
        if self.num_failed:
            lines.append(
                f"  {self.num_failed} segments failed and are left out; why: {data.shards}/*.failures.jsonl; "
                f"once mended: gvm-prep encode --shards {config.shards} --retry all"
            )
        num_lacking = sum(len(record.left_out) for record in self.complete)
        if num_lacking:
            lines.append(f"  {num_lacking} segments failed in earlier runs; to try them again: --retry all")
        return lines


def encode(data: DataFolder, config: EncodeConfig) -> Report:
    """Encode the chosen shards that are not complete.

    Raises ShardError where a complete shard is not what this plan and these encoders make.
    """
    started = time.monotonic()
    with data.read_segments() as rows:
        plan = data.freeze_plan(rows.in_order(), config.shards if config.force else "")
        chosen = chosen_shards(plan, data, config)
        refuse_other_settings(chosen, data, config)
        config = settled(data, config)
        devices = own_devices(config.device)
        calibrate(data, rows, config.on(devices[0]))
        with closing(open_engine(data, rows, config, devices)) as engine:
            refuse_other_clip(data, config, engine.fingerprint["video"])
            fingerprint = with_codec(engine.fingerprint, feature_codec(data, config))
            todo, complete = split_complete(chosen, data, fingerprint, config)
            cache = FeatureCache(data.cache, engine.fingerprint["video"])
            codes = CodeCache(data.cache, engine.fingerprint["audio"])
            tidier = Tidier(config.cache, cache, codes, plan, rows, data.recorded)
            tidier.tidy(*(plan[record.shard] for record in complete))  # a kill may have come before this
            for record in complete:
                if data.shards != data.staging:
                    discard(data.staging, record.shard)
                elif not record.left_out:
                    failures_path(data.shards, record.shard).unlink(missing_ok=True)
            with disk_errors_told(data):
                made = _encode(todo, engine, tidier)
    num_outside = len(plan.keys() - chosen.keys() - data.recorded())
    return Report(len(chosen), num_outside, made, complete, engine.progress, time.monotonic() - started)


def open_engine(
    data: DataFolder, rows: Mapping[str, Segment], config: EncodeConfig, devices: Sequence[str]
) -> Engine:
    """As the config says; locally, one process a device, and none beside this one for a single device."""
    if config.engine == "ray":
        from pipeline.ray_engine import RayEngine  # Ray is an extra

        return RayEngine(data, rows, config)
    if len(devices) > 1:
        return DeviceEngine(data, rows, config, devices)
    return LocalEngine(data, rows, config.on(devices[0]))


@contextmanager
def disk_errors_told(data: DataFolder) -> Iterator[None]:
    """Say of a disk that is full or read-only where it is and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in FATAL_ERRNO:
            raise
        raise OSError(
            f"{data.root}: {error.strerror}. Make room or mend the disk and run again: what is complete "
            "stays, and nothing half-written is left"
        ) from error


def _encode(todo: Sequence[ShardPlan], engine: Engine, tidier: Tidier) -> list[ShardRecord]:
    """Encode the shards under a progress bar."""
    plan = {shard.shard: shard for shard in todo}
    made: list[ShardRecord] = []
    num_done = 0  # frames of the shards that are done, those of failed segments, too
    with tqdm(total=planned_frames(todo), desc="encode", unit=" frames", disable=None) as bar:
        engine.progress.on_frames = bar.update
        for record in engine.encode(todo):
            made.append(record)
            tidier.tidy(plan[record.shard])
            num_done += planned_frames([plan[record.shard]])
            bar.update(num_done - bar.n)
    return made
