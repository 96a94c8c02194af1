"""From a video file to a music file, with small networks of the real classes."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor
from transformers import EncodecModel

import gvmgen
from gvmgen import generate, windows
from gvmgen.checkpoint import ModelInfo
from gvmgen.decoding import PlainEngine, SamplingConfig
from gvmgen.encoders.audio import AudioCodec
from gvmgen.encoders.fingerprint import encoder_fingerprint
from gvmgen.encoders.media import MediaError, probe
from gvmgen.encoders.video import VideoEncoder
from gvmgen.fast.choice import choose_engines
from gvmgen.generate import Composer
from gvmgen.model import GVMGen
from gvmgen.windows import Window, compose, planned, play
from shards.spec import CODE_RATE, SAMPLE_RATE
from tests import media as made
from tests.gvmgen.networks import TINY, make_network
from tools.pocket.init_untrained import CLIP_CONFIG, codec_config, draw_codebooks

GREEDY = SamplingConfig(temperature=0.0)
FOLLOWING = SamplingConfig(temperature=0.0, guidance=1.0, follow=1e6)  # so that nothing else counts


@pytest.fixture(scope="module")
def codec() -> AudioCodec:
    torch.manual_seed(0)
    small = EncodecModel(codec_config(num_filters=4)).eval()
    draw_codebooks(small, torch.Generator().manual_seed(0))
    return AudioCodec(small)


@pytest.fixture(scope="module")
def composer(codec: AudioCodec) -> Composer:
    settings = json.loads(json.dumps(CLIP_CONFIG["model_cfg"]))
    settings["vision_cfg"] |= {"layers": 1, "width": 32, "head_width": 16}
    torch.manual_seed(0)
    encoder = VideoEncoder(open_clip.CLIP(**settings).visual, torch.device("cpu"), torch.float32)
    network = make_network(codebook_size=2048, frame_changes=True, frame_codes=True)
    assert network.transformation.changes is not None
    torch.nn.init.normal_(network.transformation.changes.down.weight)
    torch.nn.init.normal_(network.frame_codes.heads.weight)
    info = ModelInfo(preset="pocket", encoder_fingerprint=encoder_fingerprint(encoder, codec))
    return Composer(network, info, encoder, codec, choose_engines(network), "small")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1.48 s at 25 frames a second, without sound."""
    path = tmp_path_factory.mktemp("video") / "numbered.mp4"
    return made.make_numbered(path, made.constant_times(1.48, Fraction(25)), frame_rate=Fraction(25))


@pytest.mark.parametrize("window_s", [15, 30])
@pytest.mark.parametrize("seconds", [1, 29, 30, 31, 50, 51, 121])
def test_windows_cover_a_piece_and_each_goes_on_from_ten_seconds(seconds: int, window_s: int) -> None:
    cut = planned(seconds * CODE_RATE, window_s)
    assert (cut[0].start, cut[-1].stop) == (0, seconds * CODE_RATE)
    assert all(window.stop - window.start <= window_s * CODE_RATE for window in cut)
    assert all(later.start == earlier.stop - 10 * CODE_RATE for earlier, later in itertools.pairwise(cut))


@pytest.mark.parametrize("seconds", [14, 15, 16, 121])
def test_windows_with_an_anchor_are_that_much_shorter_and_still_go_on_from_ten_seconds(seconds: int) -> None:
    cut = planned(seconds * CODE_RATE, 15, anchor_s=3)
    assert (cut[0].stop, cut[-1].stop) == (min(15, seconds) * CODE_RATE, seconds * CODE_RATE)
    assert all(window.stop - window.start <= 12 * CODE_RATE for window in cut[1:])
    assert all(later.start == earlier.stop - 10 * CODE_RATE for earlier, later in itertools.pairwise(cut))


def test_a_window_sees_the_frames_it_plays_to() -> None:
    assert Window(1000, 2500, 2500).frames == slice(20, 50)
    assert Window(1000, 1001, 1001).frames == slice(20, 21)


def test_the_beginning_of_a_piece_is_composed_in_the_windows_of_the_whole() -> None:
    whole = planned(100 * CODE_RATE, window_s=30)
    beginning = planned(100 * CODE_RATE, window_s=30, heard=40 * CODE_RATE)
    assert [window.frames for window in beginning] == [window.frames for window in whole[:2]]
    assert beginning[-1].stop == 40 * CODE_RATE


@pytest.fixture(scope="module")
def conditions() -> Tensor:
    """[F, M, dim] of five seconds."""
    return torch.randn(5, 1, TINY.dim, generator=torch.Generator().manual_seed(0))


def test_a_long_piece_keeps_what_is_composed_and_goes_on_from_it(conditions: Tensor) -> None:
    network = make_network(window_s=3)
    short = compose(network, conditions, planned(150, 3), SamplingConfig(), seeds=[3])
    long = compose(network, conditions, planned(230, 3), SamplingConfig(), seeds=[3])
    assert long.shape == (1, TINY.num_codebooks, 230)
    assert torch.equal(long[:, :, :150], short)


def test_a_later_window_hears_the_music_before_it(conditions: Tensor) -> None:
    network = make_network(window_s=3)
    other_start = torch.cat([-conditions[:1], conditions[1:]])  # a frame that the second window does not see
    ends = [
        compose(network, c, planned(230, 3), GREEDY, seeds=[0])[:, :, 150:] for c in (conditions, other_start)
    ]
    assert not torch.equal(*ends)


class Noting(PlainEngine):
    """The plain engine, with what it was made for and what it first read."""

    def __init__(self, model: GVMGen, conditions: Tensor, max_steps: int) -> None:
        super().__init__(model, conditions, max_steps)
        self.conditions = conditions

    def prefill(self, codes: Tensor) -> Tensor:
        self.read = codes
        return super().prefill(codes)


def test_a_later_window_begins_with_the_opening_where_the_network_has_learned_to(conditions: Tensor) -> None:
    network, engines = make_network(window_s=8, anchor_s=2), []

    def make_engine(conditions: Tensor, max_steps: int) -> Noting:
        engines.append(Noting(network, conditions, max_steps))
        return engines[-1]

    conditions = torch.randn(10, 1, TINY.dim, generator=torch.Generator().manual_seed(0))
    plan = planned(10 * CODE_RATE, 8, anchor_s=2)
    codes = compose(network, conditions, plan, SamplingConfig(), [3], make_engine=make_engine)
    first, second, third = engines
    torch.testing.assert_close(first.conditions[0], conditions[:8, 0])
    for engine, window in ((second, plan[1]), (third, plan[2])):
        seen = [conditions[:1], torch.zeros(1, 1, TINY.dim), conditions[window.frames]]
        torch.testing.assert_close(engine.conditions[0], torch.cat(seen)[:, 0])
        heard = torch.cat([codes[..., :100], codes[..., window.start : window.start + 250]], dim=2)
        assert torch.equal(engine.read[0, 0, 1:], heard[0, 0])  # the first codebook has no delay
    assert codes.shape[2] == 500
    assert [window.start for window in plan] == [0, 150, 200]


def test_the_last_second_of_a_window_follows_the_frame_after_it_too(conditions: Tensor) -> None:
    network = make_network(window_s=3, frame_codes=True)
    torch.nn.init.normal_(network.frame_codes.heads.weight)
    glimpses = torch.randn(5, 2 * TINY.feature_dim, generator=torch.Generator().manual_seed(0))
    other = torch.cat(
        [glimpses[:3], -glimpses[3:4], glimpses[4:]]
    )  # a frame that the first window does not see
    first, second = (
        compose(network, conditions, planned(230, 3), FOLLOWING, seeds=[0], glimpses=each)
        for each in (glimpses, other)
    )
    assert torch.equal(first[:, :, :100], second[:, :, :100])
    assert not torch.equal(first[:, :, 100:150], second[:, :, 100:150])


def test_a_long_piece_sounds_as_if_it_were_decoded_at_once(
    codec: AudioCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "STRETCH", 4 * CODE_RATE)
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(2048, (2, 4, 25 * CODE_RATE), generator=generator)
    num_samples = 25 * SAMPLE_RATE - 7
    at_once = codec.decode(codes)[:, :num_samples].numpy()
    for sound, whole in zip(play(codec, codes, num_samples), at_once, strict=True):
        assert sound.num_samples == num_samples
        np.testing.assert_allclose(sound.samples, whole, atol=1e-4 * np.abs(whole).max())


def test_decoding_ten_minutes_never_holds_more_than_a_stretch(
    codec: AudioCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []

    def decode(codes: Tensor) -> Tensor:
        lengths.append(codes.shape[2])
        return torch.zeros(1, codes.shape[2] * SAMPLE_RATE // CODE_RATE)

    monkeypatch.setattr(codec, "decode", decode)
    num_samples = 600 * SAMPLE_RATE
    (sound,) = play(codec, torch.zeros(1, 4, 600 * CODE_RATE, dtype=torch.int64), num_samples)
    assert sound.num_samples == num_samples == sound.path.stat().st_size // 4
    assert max(lengths) <= 75 * CODE_RATE


def test_a_video_seen_in_stretches_is_what_it_is_seen_at_once(
    composer: Composer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made.make_numbered(tmp_path / "long.mp4", made.constant_times(11, Fraction(5)))
    stretches = []
    for at_once, kept_together in ((11, 11), (2, 5)):
        monkeypatch.setattr(generate, "FRAMES_AT_ONCE", at_once)
        monkeypatch.setattr(generate, "FRAMES_KEPT", kept_together)
        stretches.append(composer._watch(path, 0.0, 11.0, None, windows.UNKEPT, windows.silent))
    for name in ("conditions", "glimpses"):
        assert len(stretches[0][name]) == 11
        torch.testing.assert_close(*(watched[name] for watched in stretches))


def test_music_follows_what_its_frames_say_in_every_window(composer: Composer, video: Path) -> None:
    music = composer.score(video, sampling=FOLLOWING)
    watched = composer._watch(video, 0.0, 1.48, None, windows.UNKEPT, windows.silent)
    codes = composer.model.frame_codes
    seen, blind = (
        codes.predict(codes(glimpses[None], 74)).log_softmax(-1)
        for glimpses in (watched["glimpses"], 0 * watched["glimpses"])
    )
    assert torch.equal(music.codes, (seen - blind).argmax(-1)[0])


def test_a_model_that_cannot_follow_frames_says_so_before_it_watches(
    codec: AudioCodec, composer: Composer, tmp_path: Path
) -> None:
    network = make_network(codebook_size=2048)
    other = Composer(network, composer.info, composer.video, codec, choose_engines(network), "other")
    with pytest.raises(ValueError, match="follow is 2, but this model has no frame_codes"):
        other.score(tmp_path / "nowhere.mp4", sampling=SamplingConfig(follow=2.0))


def test_music_is_as_long_as_its_video_to_the_sample(composer: Composer, video: Path) -> None:
    music = composer.score(video)
    assert len(music.waveform) == round(1.48 * SAMPLE_RATE)
    assert music.waveform.std() > 0


def test_the_same_seed_gives_the_same_file_and_another_seed_another(
    composer: Composer, video: Path, tmp_path: Path
) -> None:
    files = [composer.score(video, seed=seed).save(tmp_path / f"{n}.wav") for n, seed in enumerate([5, 5, 6])]
    first, again, other = (path.read_bytes() for path in files)
    assert first == again
    assert first != other


def test_only_the_first_seconds_are_scored_when_asked(composer: Composer, video: Path) -> None:
    assert composer.score(video, duration_s=0.5).duration_s == 0.5
    part = composer.score(video, start_s=0.5, duration_s=0.75)
    assert (part.start_s, part.duration_s) == (0.5, 0.75)


@pytest.mark.parametrize("duration_s", [0.0, -1.0, 2.0, float("nan")])
def test_a_duration_that_the_video_does_not_have_is_refused(
    composer: Composer, video: Path, duration_s: float
) -> None:
    with pytest.raises(ValueError, match=r"lasts 1.48 s"):
        composer.score(video, duration_s=duration_s)


@pytest.mark.parametrize("start_s", [-1.0, 1.48, float("nan")])
def test_a_start_that_the_video_does_not_have_is_refused(
    composer: Composer, video: Path, start_s: float
) -> None:
    with pytest.raises(ValueError, match=r"lasts 1.48 s"):
        composer.score(video, start_s=start_s)


def test_a_preview_is_the_beginning_of_the_same_music(composer: Composer, video: Path) -> None:
    whole, preview = composer.score(video, seed=4), composer.score(video, seed=4, preview_s=0.6)
    assert preview.duration_s == 0.6
    heard = preview.waveform[: SAMPLE_RATE // 2]  # the codec hears some code frames ahead
    np.testing.assert_allclose(heard, whole.waveform[: len(heard)], atol=1e-5)


def test_codes_that_a_piece_begins_with_are_kept_and_heard(conditions: Tensor) -> None:
    model, plan = make_network(window_s=6), planned(9 * CODE_RATE, 6)
    lead = torch.arange(2 * CODE_RATE).remainder(7).expand(4, -1)
    piece, other = (compose(model, conditions, plan, GREEDY, [0], lead=each) for each in (lead, lead.flip(1)))
    assert torch.equal(piece[0, :, : 2 * CODE_RATE], lead)
    assert piece.shape[2] == 9 * CODE_RATE
    assert not torch.equal(piece[..., 2 * CODE_RATE :], other[..., 2 * CODE_RATE :])


def test_music_that_goes_on_from_other_music_has_its_videos_length_and_says_so(
    composer: Composer, video: Path, tmp_path: Path
) -> None:
    before = made.make_sound_only(tmp_path / "before.wav", duration_s=3.0)
    free, music = composer.score(video, seed=2), composer.score(video, seed=2, continue_from=before)
    assert len(music.waveform) == len(free.waveform)
    assert not np.array_equal(music.waveform, free.waveform)
    assert music.tags["continues"] == "before.wav"
    assert "continues" not in free.tags
    preview = composer.score(video, seed=2, continue_from=before, preview_s=0.6)
    heard = preview.waveform[: SAMPLE_RATE // 2]
    np.testing.assert_allclose(heard, music.waveform[: len(heard)], atol=1e-5)


def test_music_too_short_or_silent_to_go_on_from_is_refused(
    composer: Composer, video: Path, tmp_path: Path
) -> None:
    short = made.make_sound_only(tmp_path / "short.wav", duration_s=0.5)
    with pytest.raises(ValueError, match=r"short\.wav: holds 0\.50 s of sound; .* takes a second or more"):
        composer.score(video, continue_from=short)
    with pytest.raises(ValueError, match=r"numbered\.mp4: holds 0\.00 s of sound"):
        composer.score(video, continue_from=video)


def test_each_take_is_the_piece_that_its_seed_gives_alone(composer: Composer, video: Path) -> None:
    takes = composer.takes(video, 3, seed=5)
    assert [take.seed for take in takes] == [5, 6, 7]
    for take in takes:
        np.testing.assert_array_equal(take.waveform, composer.score(video, seed=take.seed).waveform)
    assert not np.array_equal(takes[0].waveform, takes[1].waveform)


@pytest.mark.parametrize(("seed", "count"), [(-1, 1), (2**32, 1), (2**32 - 2, 3), (0, 0)])
def test_seeds_and_takes_that_cannot_be_are_refused(
    composer: Composer, video: Path, seed: int, count: int
) -> None:
    with pytest.raises(ValueError, match=r"outside 0 …|1 or more"):
        composer.takes(video, count, seed=seed)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_a_film_gets_the_music_and_keeps_its_length(
    composer: Composer, video: Path, tmp_path: Path, suffix: str
) -> None:
    film = probe(composer.score(video).save(tmp_path / f"film{suffix}"))
    assert film.has_video
    assert film.has_audio
    assert film.duration_s == pytest.approx(1.48, abs=0.05)


def test_a_file_without_picture_is_refused(composer: Composer, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no picture"):
        composer.score(made.make_sound_only(tmp_path / "sound.wav"))


def test_other_encoders_than_the_models_are_refused_with_their_difference(composer: Composer) -> None:
    print_of_others = json.loads(json.dumps(composer.info.encoder_fingerprint))
    print_of_others["audio"]["weights_sha256"] = "0000"
    info = replace(composer.info, encoder_fingerprint=print_of_others)
    other = Composer(composer.model, info, composer.video, composer.codec, composer.engines, "other")
    with pytest.raises(ValueError, match=r"audio.weights_sha256: found .*, wanted '0000'"):
        other.check_encoders()


def test_a_file_says_where_its_music_comes_from(composer: Composer, video: Path, tmp_path: Path) -> None:
    music = composer.score(video, seed=5, sampling=SamplingConfig(guidance=2.0))
    with av.open(str(music.save(tmp_path / "out.flac"))) as container:
        said = json.loads(container.metadata["comment"])
    assert said == music.tags
    assert (said["seed"], said["settings"]["guidance"], said["model"]) == (5, 2.0, "pocket, step 0")
    assert said["weights_licence"] == "not known"


def test_a_models_own_sampling_counts_where_nothing_else_is_chosen(composer: Composer, video: Path) -> None:
    info = replace(composer.info, sampling={"guidance": 6.0, "top_k": 10})
    other = Composer(composer.model, info, composer.video, composer.codec, composer.engines, "other")
    assert other.sampling(top_k=50) == SamplingConfig(guidance=6.0, top_k=50)
    assert other.score(video).tags["settings"]["guidance"] == 6.0


def test_music_before_is_gone_on_from_with_less_pull_of_the_picture_unless_that_is_chosen(
    composer: Composer, video: Path, tmp_path: Path
) -> None:
    info = replace(composer.info, sampling={"guidance": 8.0, "top_k": 10})
    other = Composer(composer.model, info, composer.video, composer.codec, composer.engines, "other")
    other.score(video).save(tmp_path / "before.wav")
    after = other.score(video, continue_from=tmp_path / "before.wav")
    assert (after.tags["settings"]["guidance"], after.tags["settings"]["top_k"]) == (4.0, 10)
    assert other.sampling(goes_on=True, guidance=9.0).guidance == 9.0


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({}, "this model is untrained"),
        ({"licence": "CC-BY-NC-4.0, as MusicGen's"}, "not for commercial use"),
    ],
)
def test_users_are_warned_of_what_limits_the_music(
    composer: Composer, change: dict[str, str], warning: str
) -> None:
    info = replace(composer.info, trained=bool(change), **change)  # type: ignore[arg-type]
    other = Composer(composer.model, info, composer.video, composer.codec, composer.engines, "other")
    (line,) = other.warnings()
    assert warning in line


def test_progress_tells_each_stage_from_start_to_end(composer: Composer, video: Path) -> None:
    told: list[tuple[str, int, int]] = []
    composer.score(video, progress=lambda *news: told.append(news))
    stages = list(dict.fromkeys(stage for stage, _, _ in told))
    assert stages == ["watching", "composing", "decoding"]
    for stage in stages:
        parts = [(done, total) for name, done, total in told if name == stage]
        assert parts[0][0] == 0
        assert parts[-1][0] == parts[-1][1]


def test_the_package_offers_the_composer_as_gvmgen() -> None:
    assert gvmgen.GVMGen is Composer
    with pytest.raises(AttributeError, match="no attribute 'GVMGenn'"):
        _ = gvmgen.GVMGenn
