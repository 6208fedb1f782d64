"""The config of deduplication."""

from dataclasses import dataclass, field

from lit_pretrain.errors import UserError


@dataclass(kw_only=True)
class NearConfig:
    """Near-duplicates: MinHash finds candidates (Broder 1997), and their true similarity decides.

    The similarity is that of Jaccard, over shingles of words.
    """

    threshold: float = 0.7
    """Least Jaccard similarity. A copy that lost 3 % of its words has about 0.77, one that lost
    1 % about 0.92.
    """
    shingle_words: int = 5
    """Words of a shingle; case and punctuation do not count."""
    bands: int = 20
    """Hash tables. Documents of similarity s meet in one with probability 1 - (1 - s^rows)^bands:
    by default 0.99 at 0.77 and 0.92 at 0.7, but 0.27 at 0.5.
    """
    rows: int = 6
    """MinHashes per table."""
    seed: int = 1
    """Seed of the MinHashes."""


@dataclass(kw_only=True)
class ContainmentConfig:
    """A document that lies within a longer one, as a chapter in its book."""

    threshold: float = 0.9
    """Least share of the shorter one's shingles that the longer one holds."""
    sample: int = 32
    """One shingle in so many is indexed (FracMinHash, Irber et al. 2022). More saves memory, and
    raises the length from which documents are found.
    """
    min_words: int = 200
    """Shorter documents stay: too few of their shingles are in the sample, and quotations are no
    copies.
    """


@dataclass(kw_only=True)
class LinesConfig:
    """Lines that occurred in the corpus before: navigation, notices, forms."""

    min_words: int = 5
    """Shorter lines stay: `return None` and `See also` repeat by nature."""
    min_count: int = 2
    """Lines that occur in so many documents are removed from all but the first."""


@dataclass(kw_only=True)
class DedupConfig:
    """What counts as a duplicate.

    Documents are compared over all sources, in the order of the config; the first one stays.
    """

    exact: bool = True
    """Remove documents whose text is the same."""
    near: NearConfig | None = field(default_factory=NearConfig)
    """Remove documents that are nearly the same. Null: off."""
    containment: ContainmentConfig | None = None
    """Remove documents that lie within a longer one. Null: off."""
    lines: LinesConfig | None = None
    """Remove lines that stood in an earlier document. Null: off."""

    def validate(self) -> None:
        """Check what the types cannot say.

        Raises:
            UserError: A value is out of range.
        """
        ranges: list[tuple[str, float, float, float]] = []
        if self.near is not None:
            near = self.near
            ranges += [
                ("near.shingle_words", near.shingle_words, 1, 100),
                ("near.bands", near.bands, 1, 1000),
            ]
            ranges += [
                ("near.rows", near.rows, 1, 100),
                ("near.seed", near.seed, 0, 2**63),
                ("near.threshold", near.threshold, 0.05, 1),
            ]
        if self.containment is not None:
            inside = self.containment
            ranges += [
                ("containment.threshold", inside.threshold, 0.05, 1),
                ("containment.sample", inside.sample, 1, 2**20),
            ]
            ranges += [("containment.min_words", inside.min_words, self.shingle_words, 2**40)]
        if self.lines is not None:
            ranges += [
                ("lines.min_words", self.lines.min_words, 1, 2**20),
                ("lines.min_count", self.lines.min_count, 2, 2**40),
            ]
        for name, value, low, high in ranges:
            if not low <= value <= high:
                raise UserError(f"dedup.{name}={value} must lie between {low} and {high}")

    @property
    def shingle_words(self) -> int:
        """Words of a shingle, for near-duplicates and containment alike."""
        return self.near.shingle_words if self.near is not None else NearConfig.shingle_words

    @property
    def compares(self) -> bool:
        """Whether whole documents are compared at all."""
        return self.exact or self.near is not None or self.containment is not None
