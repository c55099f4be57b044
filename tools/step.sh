#!/bin/sh
# Run one step of a make target: tools/step.sh NAME ADVICE COMMAND...
# A step that fails says which one it was and what to do.
name=$1 advice=$2
shift 2
echo "==> $name"
"$@" || {
    echo >&2
    echo "make: the step '$name' failed. $advice" >&2
    exit 1
}
