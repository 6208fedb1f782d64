"""Presets: the rules of published datasets by name, each number with its rule.

FineWeb's recipe puts these sets one after the other; its config is

    filters:
      - {class_path: Url, init_args: {datatrove_lists: true}}       # section 3.3, base filtering; the same lists
      - {class_path: Language, init_args: {keep: [en]}}             # there with fastText, and a score of at least 0.65
      - gopher                                                      # there, too
      - {class_path: C4, init_args: {terminal_punctuation: false}}  # section 3.5: all of C4's rules but this one
      - fineweb                                                     # section 3.6
"""

from __future__ import annotations

from lit_pretrain.prepare.filters.spec import FilterSpec

PRESETS: dict[str, tuple[FilterSpec, ...]] = {
    # Rae et al. (2021), Scaling Language Models, arXiv:2112.11446, section A.1.1
    "gopher": (
        FilterSpec(
            class_path="GopherRepetition",
            init_args={
                "max_duplicate_paragraphs": 0.30,  # table A1: duplicate paragraph fraction
                "max_duplicate_paragraph_characters": 0.20,  # table A1: duplicate paragraph character fraction
                "max_duplicate_lines": 0.30,  # table A1: duplicate line fraction
                "max_duplicate_line_characters": 0.20,  # table A1: duplicate line character fraction
                "top_ngrams": {2: 0.20, 3: 0.18, 4: 0.16},  # table A1: top n-gram character fraction
                "duplicate_ngrams": {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10},  # table A1: duplicate n-gram ...
            },
        ),
        FilterSpec(
            class_path="GopherQuality",
            init_args={
                "min_words": 50,  # "between 50 and 100,000 words"
                "max_words": 100_000,
                "min_mean_word_length": 3,  # "mean word length" from 3 to 10 characters
                "max_mean_word_length": 10,
                "max_symbols_per_word": 0.1,  # "symbol-to-word ratio" of hash signs and of ellipses
                "max_bullet_lines": 0.9,  # lines starting with a bullet point
                "max_ellipsis_lines": 0.3,  # lines ending with an ellipsis
                "min_alphabetic_words": 0.8,  # words with at least one alphabetic character
                "min_stop_words": 2,  # of the, be, to, of, and, that, have, with
            },
        ),
    ),
    # Raffel et al. (2020), Exploring the Limits of Transfer Learning, JMLR 21 (20-074), section 2.2
    "c4": (
        FilterSpec(
            class_path="C4",
            init_args={
                "terminal_punctuation": True,  # lines that end in a terminal punctuation mark
                "min_sentences": 5,  # datatrove, with which FineWeb was made; the authors' code has 3
                "min_words_per_line": 3,  # datatrove; the authors' code has 5
                "max_word_length": 1000,  # the code alone
                "curly_brackets": True,  # pages with a curly bracket
                "javascript": True,  # lines with the word Javascript
                "policy": True,  # boilerplate policy notices
                "lorem_ipsum": True,  # pages with "lorem ipsum"
                "citations": True,  # Wikipedia's citation marks
            },
        ),
    ),
    # Penedo et al. (2024), The FineWeb Datasets, arXiv:2406.17557, section 3.6
    "fineweb": (
        FilterSpec(
            class_path="FineWeb",
            init_args={
                "min_sentence_end_lines": 0.12,  # fraction of lines ending with punctuation
                "max_short_lines": 0.67,  # fraction of lines shorter than 30 characters
                "short_line": 30,
                "max_duplicate_line_characters": 0.01,  # fraction of characters in duplicated lines: their code; the paper says 0.1
                "max_line_breaks_per_word": 0.3,  # their code alone
            },
        ),
    ),
}
