#!/bin/sh
# Fail if a wheel lacks the native kernel, without which setuptools builds one all the same: check_wheel.sh PYTHON WHEEL
set -eu
"$1" -m zipfile --list "$2" | grep _resize.abi3.so >/dev/null || {
	echo "$2: no native kernel in it: no C compiler?" >&2
	exit 1
}
