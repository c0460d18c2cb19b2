#!/bin/sh
# Make a virtual environment: venv.sh PYTHON DIRECTORY. On a Debian without the venv module, installs it where that is allowed.
set -eu
python=$1 directory=$2
[ -x "$directory/bin/pip" ] && exit 0

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
	echo "$python is older than Python 3.11; set PYTHON to a newer one" >&2
	exit 1
}
if ! "$python" -c 'import ensurepip' 2>/dev/null; then
	version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
	if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
		apt-get update -qq
		DEBIAN_FRONTEND=noninteractive apt-get install -qq -y "python$version-venv"
	else
		echo "$python has no venv module: run 'apt-get install python$version-venv' as root, then try again" >&2
		exit 1
	fi
fi
"$python" -m venv "$directory"
