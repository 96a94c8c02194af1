"""Scenario -> notes: keys, chords, a melody of motifs, bass and drums that obey the pair's rules.

motion -> notes a second, loudness, drums (and, once a piece, the tempo); brightness -> register, and
major or minor; colour temperature -> instrument family; a cut -> a new section on its own downbeat with a
cymbal; stillness -> long notes. Every time is a whole number of code frames (1/50 s), so that a note
always begins at the same place of a code.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scenario import Scenario, Scene

CODE_RATE = 50  # Hz
STEPS_PER_BAR = 16
# Which sixteenths of a bar sound first as the music grows denser: the metre's own order.
METRICAL_ORDER = (0, 8, 4, 12, 6, 14, 2, 10, 3, 11, 7, 15, 5, 13, 1, 9)
METRICAL_RANK = tuple(METRICAL_ORDER.index(step) for step in range(STEPS_PER_BAR))

MAJOR = (0, 2, 4, 5, 7, 9, 11)
MINOR = (0, 2, 3, 5, 7, 8, 10)
GONG = (0, 2, 4, 7, 9)  # the Chinese pentatonic mode on its first degree
YU = (0, 3, 5, 7, 10)  # the same five notes from the sixth degree: the minor one
TONICS = (0, 5, 7)  # C, F, G for the bright sections; their relatives A, D, E for the dark ones
MAJOR_PROGRESSIONS = ((0, 4, 5, 3), (0, 3, 4, 0), (0, 5, 3, 4), (0, 5, 1, 4), (0, 2, 3, 4))
MINOR_PROGRESSIONS = ((0, 5, 2, 6), (0, 3, 6, 0), (0, 5, 3, 6), (0, 6, 5, 6))
KICK, SNARE, HAT, CRASH = 36, 38, 42, 49


@dataclass(frozen=True)
class Voices:
    """General MIDI programs of one instrument family."""

    lead: int
    chords: int
    bass: int


WESTERN = {
    "keyboard": Voices(0, 0, 0),  # piano
    "bowed": Voices(40, 48, 42),  # violin, string ensemble, cello
    "blown": Voices(73, 71, 70),  # flute, clarinet, bassoon
    "plucked": Voices(24, 24, 32),  # nylon guitar, double bass
}
CHINESE = {**WESTERN, "plucked": Voices(107, 107, 32)}  # koto, nearest to the guzheng


@dataclass(frozen=True)
class Note:
    """One note; `program` -1 is the drum kit. Times in code frames."""

    start: int
    length: int
    pitch: int
    velocity: int
    program: int


@dataclass(frozen=True)
class Section:
    """The music between two cuts: a key, a progression, a motif. Steps are sixteenths."""

    scene: Scene
    first_step: int
    last_step: int
    tonic: int  # pitch class
    scale: tuple[int, ...]  # of the harmony, seven notes
    melody_scale: tuple[int, ...]
    progression: tuple[int, ...]
    motif: tuple[int, ...]  # scale steps from note to note
    is_pentatonic: bool

    def chord(self, step: int) -> tuple[int, ...]:
        """Pitch classes of the chord at a step, root first; open fifths in a pentatonic piece."""
        degree = self.progression[(step - self.first_step) // STEPS_PER_BAR % len(self.progression)]
        stack = (0, 4) if self.is_pentatonic else (0, 2, 4)
        return tuple((self.tonic + self.scale[(degree + i) % 7]) % 12 for i in stack)


def compose(scenario: Scenario) -> list[Note]:
    """The notes of a scenario, by start time."""
    rng = _generator(scenario)
    notes: list[Note] = []
    for section in _sections(scenario, rng):
        voices = (CHINESE if section.is_pentatonic else WESTERN)[section.scene.family]
        notes += _melody(scenario, section, voices.lead, rng)
        notes += _harmony(scenario, section, voices)
        notes += _drums(scenario, section)
    end = round(scenario.duration_s * CODE_RATE)
    return sorted((n for n in notes if n.start < end), key=lambda n: (n.start, n.program, n.pitch))


def mean_pitch(notes: list[Note], num_seconds: int) -> list[float | None]:
    """Mean pitch (MIDI) of what sounds in each second, drums apart, weighted by time; None in silence."""
    means: list[float | None] = []
    for begin in range(0, num_seconds * CODE_RATE, CODE_RATE):
        end = begin + CODE_RATE
        sounding = [
            (note.pitch, min(note.start + note.length, end) - max(note.start, begin))
            for note in notes
            if note.program >= 0 and note.start < end and note.start + note.length > begin
        ]
        total = sum(length for _, length in sounding)
        means.append(round(sum(p * length for p, length in sounding) / total, 2) if total else None)
    return means


def section_keys(scenario: Scenario) -> list[tuple[float, int, bool]]:
    """(start in s, tonic pitch class, is minor) of every section: part of the truth."""
    sections = _sections(scenario, _generator(scenario))
    seconds_per_step = scenario.step_frames / CODE_RATE
    return [(s.first_step * seconds_per_step, s.tonic, s.scale == MINOR) for s in sections]


def _sections(scenario: Scenario, rng: np.random.Generator) -> list[Section]:
    home = _home(scenario, rng)
    is_pentatonic = bool(rng.random() < 0.4)
    starts = [_nearest_step(scenario, scene.start_s) for scene in scenario.scenes]
    ends = [*starts[1:], _nearest_step(scenario, scenario.duration_s) + 1]
    return [
        _section(scene, first, last, home, is_pentatonic, rng)
        for scene, first, last in zip(scenario.scenes, starts, ends, strict=True)
    ]


def _generator(scenario: Scenario) -> np.random.Generator:
    return np.random.default_rng((scenario.seed, 2, scenario.piece))


def _home(scenario: Scenario, rng: np.random.Generator) -> int:
    """The tonic: what the first piece draws, and the next ones in turn."""
    drawn = int(rng.choice(len(TONICS)))
    if scenario.piece:
        drawn = int(np.random.default_rng((scenario.seed, 2)).choice(len(TONICS))) + scenario.piece
    return TONICS[drawn % len(TONICS)]


def _section(
    scene: Scene, first: int, last: int, home: int, is_pentatonic: bool, rng: np.random.Generator
) -> Section:
    is_minor = float(np.mean(scene.brightness)) < 0.45
    progressions = MINOR_PROGRESSIONS if is_minor else MAJOR_PROGRESSIONS
    scale = MINOR if is_minor else MAJOR
    return Section(
        scene=scene,
        first_step=first,
        last_step=last,
        tonic=(home + 9) % 12 if is_minor else home,
        scale=scale,
        melody_scale=(YU if is_minor else GONG) if is_pentatonic else scale,
        progression=progressions[int(rng.integers(len(progressions)))],
        motif=tuple(int(s) for s in rng.choice([-2, -1, -1, 1, 1, 2], size=6)),
        is_pentatonic=is_pentatonic,
    )


def _nearest_step(scenario: Scenario, time_s: float) -> int:
    return round(time_s * CODE_RATE / scenario.step_frames)


def _time_s(scenario: Scenario, step: int) -> float:
    return step * scenario.step_frames / CODE_RATE


def _controls(scenario: Scenario, section: Section, step: int) -> tuple[float, float]:
    """(motion, brightness) at a step, never looking over the section's own bounds."""
    scene = section.scene
    time_s = float(np.clip(_time_s(scenario, step), scene.start_s, scene.end_s - 1e-3))
    return scenario.motion(time_s), scenario.brightness(time_s)


def _density(scenario: Scenario, motion: float) -> float:
    """Share of the sixteenths that sound: half an onset a second in stillness, eight at full motion."""
    onsets_per_second = 0.5 + 7.5 * motion
    return min(1.0, onsets_per_second * scenario.step_frames / CODE_RATE)


def _sounds(section: Section, step: int, share: float) -> bool:
    return METRICAL_RANK[(step - section.first_step) % STEPS_PER_BAR] < max(1.0, share * STEPS_PER_BAR)


def _velocity(motion: float, accent: float = 0.0) -> int:
    return int(np.clip(58 + 38 * motion + accent, 1, 120))


def _melody(scenario: Scenario, section: Section, program: int, rng: np.random.Generator) -> list[Note]:
    """Motifs over the scale: chord notes on the beat, steps between, drawn back to the register's centre."""
    steps = []
    for step in range(section.first_step, section.last_step):
        motion, _ = _controls(scenario, section, step)
        if _sounds(section, step, min(0.5, _density(scenario, motion))):
            steps.append(step)
    notes, pitch = [], None
    for i, step in enumerate(steps):
        motion, brightness = _controls(scenario, section, step)
        centre = 52 + 34 * brightness
        pitch = _next_pitch(section, step, i, pitch, centre)
        following = steps[i + 1] if i + 1 < len(steps) else section.last_step
        length = min(following - step, STEPS_PER_BAR) * scenario.step_frames
        beat_accent = 8 if (step - section.first_step) % 4 == 0 else 0
        notes.append(
            Note(step * scenario.step_frames, length, pitch, _velocity(motion, 12 + beat_accent), program)
        )
    return notes


def _next_pitch(section: Section, step: int, index: int, previous: int | None, centre: float) -> int:
    ladder = [p for p in range(36, 97) if (p - section.tonic) % 12 in section.melody_scale]
    if (step - section.first_step) % 8 == 0 or previous is None:
        chord = section.chord(step)
        ladder = [p for p in ladder if p % 12 in chord]
        wanted = centre if previous is None else 0.6 * previous + 0.4 * centre
        return min(ladder, key=lambda p: abs(p - wanted))
    position = min(range(len(ladder)), key=lambda i: abs(ladder[i] - previous))
    move = section.motif[index % len(section.motif)]
    if abs(previous - centre) > 5:
        move = abs(move) if previous < centre else -abs(move)
    return ladder[int(np.clip(position + move, 0, len(ladder) - 1))]


def _harmony(scenario: Scenario, section: Section, voices: Voices) -> list[Note]:
    """Chords of near voice-leading over a bass; re-struck, then broken, as motion grows."""
    notes: list[Note] = []
    voicing: list[int] = []
    frames = scenario.step_frames
    for step in range(section.first_step, section.last_step):
        place = (step - section.first_step) % STEPS_PER_BAR
        motion, brightness = _controls(scenario, section, step)
        is_cut = step == section.first_step and step > 0
        accent = 24 if is_cut else 0
        chord = section.chord(step)
        if place == 0:
            voicing = _voicing(chord, voicing, 44 + 27 * brightness)
        every = STEPS_PER_BAR if motion < 0.3 else 8 if motion < 0.65 else 4
        left = section.last_step - step
        if place % every == 0:
            length = min(every, left) * frames
            bass = _nearest(chord[0], 31 + 20 * brightness)
            notes.append(Note(step * frames, length, bass, _velocity(motion, accent - 20), voices.bass))
            for pitch in voicing:
                notes.append(
                    Note(step * frames, length, pitch, _velocity(motion, accent - 28), voices.chords)
                )
        elif motion > 0.4 and place % 2 == 0 and _sounds(section, step, _density(scenario, motion)):
            pitch = voicing[place // 2 % len(voicing)]
            notes.append(
                Note(step * frames, min(2, left) * frames, pitch, _velocity(motion, -24), voices.chords)
            )
    return notes


def _nearest(pitch_class: int, centre: float) -> int:
    return min((p for p in range(24, 97) if p % 12 == pitch_class), key=lambda p: abs(p - centre))


def _voicing(chord: tuple[int, ...], previous: list[int], centre: float) -> list[int]:
    """Each chord note at its nearest place to the voice before it, so that voices move little."""
    anchors = previous if len(previous) == len(chord) else [centre + 4 * i for i in range(len(chord))]
    drift = centre - float(np.mean(anchors)) + 4 * (len(chord) - 1) / 2
    anchors = [a + np.clip(drift, -6, 6) * 0.6 for a in sorted(anchors)]
    return sorted({_nearest(pc, anchor) for pc, anchor in zip(chord, anchors, strict=True)})


def _drums(scenario: Scenario, section: Section) -> list[Note]:
    """A kit that enters with motion; a cymbal marks every cut, even in a still picture."""
    notes = []
    frames = scenario.step_frames
    for step in range(section.first_step, section.last_step):
        place = (step - section.first_step) % STEPS_PER_BAR
        motion, _ = _controls(scenario, section, step)
        hits = []
        if step == section.first_step and step > 0:
            hits += [(CRASH, 112), (KICK, 115)]
        if motion > 0.35 and place % 8 == 0:
            hits.append((KICK, _velocity(motion, 10)))
        if motion > 0.5 and place % 8 == 4:
            hits.append((SNARE, _velocity(motion)))
        if motion > 0.45 and place % (4 if motion < 0.7 else 2) == 0:
            hits.append((HAT, _velocity(motion, -25)))
        notes += [Note(step * frames, frames, pitch, velocity, -1) for pitch, velocity in dict(hits).items()]
    return notes
