#!/usr/bin/env bash
# Compiles kube-apiserver and kube-controller-manager from Debian's own source package, once, for needs_kube.
#   build_kubernetes.sh [CACHE]      default: $GPUVIGIL_KUBE_CACHE or ~/.cache/gpuvigil/kubernetes
# 6 minutes on 2 cores, 2.6 GB of scratch, root for apt-get. Exits non-zero with the reason on any failure.
#
# One file of the source is mended: its reflect2 calls the runtime as Go before 1.18 did, and the server dies of
# the first custom resource (JobSet, PyTorchJob, ...) when it is built with a newer one.
set -euo pipefail
cache=$(realpath -m "${1:-${GPUVIGIL_KUBE_CACHE:-$HOME/.cache/gpuvigil/kubernetes}}")
programs=(kube-apiserver kube-controller-manager)
mended=$cache/bin/custom-resources-work
[ -e "$mended" ] && [ -x "$cache/bin/${programs[0]}" ] && [ -x "$cache/bin/${programs[1]}" ] && exit 0

export DEBIAN_FRONTEND=noninteractive
sources=/etc/apt/sources.list.d/gpuvigil-src.sources
sed 's/^Types: deb$/Types: deb-src/' /etc/apt/sources.list.d/debian.sources > "$sources"
work=$cache/src.$$
trap 'rm -rf "$work" "$sources"' EXIT
apt-get update -qq
RUNLEVEL=1 apt-get install -y -qq --no-install-recommends golang-go dpkg-dev rsync jq etcd-server openssl >/dev/null
mkdir -p "$work" "$cache/bin"
cd "$work"
apt-get source -qq --download-only kubernetes
dpkg-source -x kubernetes_*.dsc tree >/dev/null
cat > version <<'V'
KUBE_GIT_COMMIT='debian'
KUBE_GIT_TREE_STATE='clean'
KUBE_GIT_VERSION='v1.20.2'
KUBE_GIT_MAJOR='1'
KUBE_GIT_MINOR='20'
V
cd tree
python3 - vendor/github.com/modern-go/reflect2 <<'P'
import pathlib
import sys

folder = pathlib.Path(sys.argv[1])


def mend(name: str, old: str, new: str) -> None:
    text = (folder / name).read_text()
    assert text.count(old) == 1, f"{name}: expected once: {old}"
    (folder / name).write_text(text.replace(old, new))


mend("unsafe_link.go", "func mapiterinit(rtype unsafe.Pointer, m unsafe.Pointer) *hiter",
     "func mapiterinit(rtype unsafe.Pointer, m unsafe.Pointer, it *hiter)")
# the runtime fills in an iterator of this size
mend("unsafe_link.go", "\t// rest fields are ignored", "\trest [10]unsafe.Pointer")
mend("unsafe_map.go", "\treturn &UnsafeMapIterator{", "\tit := &hiter{}\n\tmapiterinit(type2.rtype, "
     "*(*unsafe.Pointer)(obj), it)\n\treturn &UnsafeMapIterator{")
mend("unsafe_map.go", "mapiterinit(type2.rtype, *(*unsafe.Pointer)(obj)),", "it,")
P
mkdir -p .go/src/k8s.io
ln -sfn ../../.. .go/src/k8s.io/kubernetes
GOPATH=$PWD/.go GOCACHE=$work/gocache CGO_ENABLED=0 GOFLAGS='' KUBE_GIT_VERSION_FILE=$work/version \
  make WHAT="cmd/${programs[0]} cmd/${programs[1]}" >&2
for program in "${programs[@]}"; do
  built=$(find _output -type f -name "$program" -perm -u+x | head -1)
  strip "$built" || true
  cp "$built" "$cache/bin/$program.new"
  mv "$cache/bin/$program.new" "$cache/bin/$program"  # whoever runs the old one goes on with it
done
touch "$mended"
echo "built: ${programs[*]} in $cache/bin" >&2
