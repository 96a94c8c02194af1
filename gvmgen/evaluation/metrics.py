"""Every number of the table: what it is called, what it means, which way is better. No torch."""

from __future__ import annotations

from dataclasses import dataclass

GROUPS = {
    "picture": "Fit to the picture",
    "reference": "Against the reference",
    "sound": "The music itself",
}


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One column of the table."""

    name: str
    title: str
    group: str
    better: str = ""  # "higher", "lower", or neither
    digits: int = 2
    about: str


METRICS = (
    Metric(
        name="cmr",
        title="CMR",
        group="picture",
        better="higher",
        about="probability, among the pieces of a batch, that the evaluator gives the right one; leak-free",
    ),
    Metric(
        name="accuracy",
        title="accuracy",
        group="picture",
        better="higher",
        about="how often that is the highest of them",
    ),
    Metric(
        name="ta",
        title="TA",
        group="picture",
        better="higher",
        about="the evaluator's attention of each second of video to the same second of music",
    ),
    Metric(
        name="cmr_printed",
        title="CMR as printed",
        group="picture",
        about="the publication's form, which leaks who belongs to whom: see its shuffled value",
    ),
    Metric(name="ta_printed", title="TA as printed", group="picture", about="likewise"),
    Metric(
        name="onset_motion",
        title="onsets ~ motion",
        group="picture",
        better="higher",
        about="correlation of onset strength and motion, smoothed by 0.2 s",
    ),
    Metric(
        name="energy_motion",
        title="level ~ motion",
        group="picture",
        better="higher",
        about="correlation of level in dB and motion, smoothed by 0.2 s",
    ),
    Metric(
        name="cut_onsets",
        title="onsets on cuts",
        group="picture",
        better="higher",
        about="how near onsets are to cuts, 0 … 1, less what shifted ones reach; videos with cuts only",
    ),
    Metric(
        name="cut_beats",
        title="beats on cuts",
        group="picture",
        better="higher",
        about="the same with beats",
    ),
    Metric(
        name="fad_inf",
        title="FAD∞",
        group="reference",
        better="lower",
        about="Fréchet audio distance, extrapolated to infinitely much music",
    ),
    Metric(name="fad", title="FAD", group="reference", better="lower", about="the same at this N"),
    Metric(
        name="kad",
        title="KAD",
        group="reference",
        better="lower",
        about="kernel audio distance; unbiased, so below 0 by chance",
    ),
    Metric(
        name="kld",
        title="KLD",
        group="reference",
        better="lower",
        about="of the tagger's classes, this video's reference against its music",
    ),
    Metric(
        name="precision",
        title="precision",
        group="reference",
        better="higher",
        about="share of pieces within the reference's spread",
    ),
    Metric(
        name="recall",
        title="recall",
        group="reference",
        better="higher",
        about="share of the reference's pieces within the system's spread",
    ),
    Metric(
        name="density",
        title="density",
        group="reference",
        better="higher",
        about="how many neighbourhoods of reference pieces a piece lies in, over 5",
    ),
    Metric(
        name="coverage",
        title="coverage",
        group="reference",
        better="higher",
        about="share of the reference's pieces with a piece beside them; falls when all sound alike",
    ),
    Metric(
        name="key_agreement",
        title="key",
        group="reference",
        better="higher",
        about="agreement with the reference's key: 1 same, 0.5 fifth, 0.3 relative, 0.2 parallel",
    ),
    Metric(
        name="tempo_agreement",
        title="tempo",
        group="reference",
        better="higher",
        about="share within 4 % of the reference's tempo, its double, triple, half or third",
    ),
    Metric(
        name="diversity",
        title="diversity",
        group="sound",
        digits=3,
        about="mean cosine distance to the music of the other videos; 0: one track for all",
    ),
    Metric(
        name="take_diversity",
        title="of takes",
        group="sound",
        digits=3,
        about="mean cosine distance between takes for one video",
    ),
    Metric(name="bpm", title="tempo, BPM", group="sound", digits=0, about="estimated"),
    Metric(name="key_clarity", title="key clarity", group="sound", about="how well the pitches fit a key"),
    Metric(name="loudness", title="LUFS", group="sound", digits=1, about="integrated loudness, BS.1770"),
    Metric(
        name="silence", title="silence", group="sound", better="lower", about="share of time below -60 dB"
    ),
    Metric(
        name="clipping",
        title="clipping",
        group="sound",
        better="lower",
        digits=4,
        about="share of samples at full scale",
    ),
    Metric(
        name="length_s",
        title="length, s",
        group="sound",
        digits=1,
        about="seconds longer than the video, before it was cut to it",
    ),
)
BY_NAME = {metric.name: metric for metric in METRICS}
OF_SETS = ("fad_inf", "fad", "kad")  # one value a set, none an item
