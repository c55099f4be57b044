#!/bin/sh
# Run one step of a make target: tools/step.sh NAME ADVICE COMMAND...
# If the command fails, print the name of the step and the advice.
name=$1 advice=$2
shift 2
echo "==> $name"
"$@" || {
    echo >&2
    echo "make: the step '$name' failed. $advice" >&2
    exit 1
}
