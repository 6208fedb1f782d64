"""Keys: private keys and access tokens, by the forms that their issuers publish so that they can be found."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lit_pretrain.prepare.pii.addresses import Span

# What must stand in the text, and the whole form. Each begins with its literal, so that a search runs at the speed of a string search.
_B, _E = r"(?<![A-Za-z0-9_])", r"(?![A-Za-z0-9_])"
_FORMS = tuple(
    (literal, re.compile(pattern))
    for literal, pattern in (
        # RFC 7468 §10 to §11, OpenPGP armour (RFC 9580 §6.2): a private key from its first line to its last. A name without a body is code.
        (
            "PRIVATE KEY",
            r"-----BEGIN ([A-Z0-9 ]{0,20}PRIVATE KEY(?: BLOCK)?)-----(?=(?:(?!-----)[\s\S]){0,400}?[A-Za-z0-9+/]{40})"
            r"(?:(?!-----)[\s\S]){60,20000}-----END \1-----",
        ),
        ("AKIA", _B + r"AKIA[A-Z2-7]{16}" + _E),  # AWS IAM User Guide, "IAM identifiers": access key; ASIA is a temporary one
        ("ASIA", _B + r"ASIA[A-Z2-7]{16}" + _E),
        # GitHub, "Behind GitHub's new authentication token formats" (2021), and fine-grained tokens (2022)
        *((f"gh{kind}_", _B + rf"gh{kind}_[A-Za-z0-9]{{36,251}}" + _E) for kind in "pousr"),
        ("github_pat_", _B + r"github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}" + _E),
        ("glpat-", _B + r"glpat-[A-Za-z0-9_-]{20,}" + _E),  # GitLab docs, "Token overview"
        ("xox", _B + r"xox[abeoprs]-(?:\d+-)?[A-Za-z0-9-]{10,}" + _E),  # Slack API docs, "Token types"
        (
            "hooks.slack.com/services/T",
            r"hooks\.slack\.com/services/T[A-Z0-9]{6,}/B[A-Z0-9]{6,}/[A-Za-z0-9]{16,}" + _E,
        ),  # Slack, "Incoming webhooks"
        ("AIza", _B + r"AIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"),  # Google Cloud docs, "Manage API keys"
        ("k_live_", _B + r"[rs]k_live_[A-Za-z0-9]{16,247}" + _E),  # Stripe docs, "API keys": secret and restricted
        ("k_test_", _B + r"[rs]k_test_[A-Za-z0-9]{16,247}" + _E),
        # OpenAI and Anthropic API docs: sk-proj-, sk-svcacct-, sk-admin-, sk-ant-api03-; formerly sk- and 48 letters and digits
        ("sk-", _B + r"(?<!-)sk-(?:proj|svcacct|admin|ant-[a-z]+\d\d)-[A-Za-z0-9_-]{32,}" + _E),
        ("sk-", _B + r"(?<!-)sk-(?=[A-Za-z]*\d)(?=[a-z0-9]*[A-Z])[A-Za-z0-9]{32,64}(?![A-Za-z0-9_-])"),
        ("hf_", _B + r"hf_[A-Za-z]{34}" + _E),  # Hugging Face Hub docs, "User access tokens"
        ("npm_", _B + r"npm_[A-Za-z0-9]{36}" + _E),  # npm docs, "About access tokens"
        ("pypi-AgEI", _B + r"pypi-AgEI[A-Za-z0-9_-]{50,}" + _E),  # PyPI help, "API tokens": a macaroon with its version
        ("SG.", _B + r"SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}" + _E),  # Twilio SendGrid docs, "API keys"
        # RFC 7519: header and claims are JSON objects, so both begin with {" in base64url
        ("eyJ", r"eyJ(?<![A-Za-z0-9_-]...)[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{16,}" + _E),
    )
)


def find_keys(text: str) -> Iterator[Span]:
    """Private keys and tokens."""
    spans = [match.span() for literal, form in _FORMS if literal in text for match in form.finditer(text)]
    done = 0
    for start, end in sorted(spans):
        if start >= done:
            yield start, end
            done = end
