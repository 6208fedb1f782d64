"""Keys: private keys and access tokens, by the patterns that their issuers publish for scanners."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lit_pretrain.prepare.pii.addresses import Span

_START, _END = r"(?<![A-Za-z0-9_])", r"(?![A-Za-z0-9_])"
_FORMS = tuple(
    (literal, re.compile(pattern))
    for literal, pattern in (
        # RFC 7468 §10 to §11, OpenPGP armour (RFC 9580 §6.2): a private key from its first line to
        # its last. A name without a body is code.
        (
            "PRIVATE KEY",
            r"-----BEGIN ([A-Z0-9 ]{0,20}PRIVATE KEY(?: BLOCK)?)-----"
            r"(?=(?:(?!-----)[\s\S]){0,400}?[A-Za-z0-9+/]{40})"
            r"(?:(?!-----)[\s\S]){60,20000}-----END \1-----",
        ),
        # AWS IAM User Guide, "IAM identifiers": access key; ASIA is a temporary one.
        ("AKIA", _START + r"AKIA[A-Z2-7]{16}" + _END),
        ("ASIA", _START + r"ASIA[A-Z2-7]{16}" + _END),
        # GitHub, "Behind GitHub's new authentication token formats" (2021), and fine-grained tokens
        # (2022).
        *((f"gh{kind}_", _START + rf"gh{kind}_[A-Za-z0-9]{{36,251}}" + _END) for kind in "pousr"),
        ("github_pat_", _START + r"github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}" + _END),
        # GitLab docs, "Token overview".
        ("glpat-", _START + r"glpat-[A-Za-z0-9_-]{20,}" + _END),
        # Slack API docs, "Token types" and "Incoming webhooks".
        ("xox", _START + r"xox[abeoprs]-(?:\d+-)?[A-Za-z0-9-]{10,}" + _END),
        (
            "hooks.slack.com/services/T",
            r"hooks\.slack\.com/services/T[A-Z0-9]{6,}/B[A-Z0-9]{6,}/[A-Za-z0-9]{16,}" + _END,
        ),
        # Google Cloud docs, "Manage API keys".
        ("AIza", _START + r"AIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"),
        # Stripe docs, "API keys": secret and restricted.
        ("k_live_", _START + r"[rs]k_live_[A-Za-z0-9]{16,247}" + _END),
        ("k_test_", _START + r"[rs]k_test_[A-Za-z0-9]{16,247}" + _END),
        # OpenAI and Anthropic API docs: sk-proj-, sk-svcacct-, sk-admin-, sk-ant-api03-; formerly
        # sk- and 48 letters and digits.
        (
            "sk-",
            _START + r"(?<!-)sk-(?:proj|svcacct|admin|ant-[a-z]+\d\d)-[A-Za-z0-9_-]{32,}" + _END,
        ),
        (
            "sk-",
            _START
            + r"(?<!-)sk-(?=[A-Za-z]*\d)(?=[a-z0-9]*[A-Z])[A-Za-z0-9]{32,64}(?![A-Za-z0-9_-])",
        ),
        # Hugging Face Hub docs, "User access tokens".
        ("hf_", _START + r"hf_[A-Za-z]{34}" + _END),
        # npm docs, "About access tokens".
        ("npm_", _START + r"npm_[A-Za-z0-9]{36}" + _END),
        # PyPI help, "API tokens": a macaroon with its version.
        ("pypi-AgEI", _START + r"pypi-AgEI[A-Za-z0-9_-]{50,}" + _END),
        # Twilio SendGrid docs, "API keys".
        ("SG.", _START + r"SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}" + _END),
        # RFC 7519: header and claims are JSON objects, so both begin with {" in base64url.
        (
            "eyJ",
            r"eyJ(?<![A-Za-z0-9_-]...)[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{16,}"
            + _END,
        ),
    )
)
"""(literal that must occur in the text, pattern of the whole). Most texts hold none of the literals
and cost only string searches; a pattern begins with its literal, so that it is found as fast.
"""


def find_keys(text: str) -> Iterator[Span]:
    """Find private keys and tokens."""
    spans = [
        match.span() for literal, form in _FORMS if literal in text for match in form.finditer(text)
    ]
    done = 0
    for start, end in sorted(spans):
        if start >= done:
            yield start, end
            done = end
