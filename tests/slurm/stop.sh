#!/usr/bin/env bash
# End what start.sh DIRECTORY started.
directory=$(realpath -m "$1")
export SLURM_CONF="$directory/slurm.conf"
scancel --user="$(id -un)" --state=PENDING,RUNNING 2>/dev/null
scontrol shutdown 2>/dev/null
sleep 1
for daemon in slurmd slurmctld; do
  [ -s "$directory/$daemon.pid" ] && kill "$(cat "$directory/$daemon.pid")" 2>/dev/null
done
[ -e "$directory/own_munged" ] && setpriv --reuid=munge --regid=munge --clear-groups munged --stop >/dev/null 2>&1
true
