#!/usr/bin/env bash
# A real SLURM on this machine, one controller and one node, as root and without cgroups: start.sh DIRECTORY.
# DIRECTORY gets its configuration (SLURM_CONF), logs and state; stop.sh DIRECTORY ends it.
set -euo pipefail
directory=$(realpath -m "$1")
mkdir -p "$directory/state" "$directory/spool" /run/munge /var/lib/munge /var/log/munge
chown munge: /run/munge /var/lib/munge /var/log/munge
[ -s /etc/munge/munge.key ] || { dd if=/dev/urandom of=/etc/munge/munge.key bs=1024 count=1 status=none
  chown munge: /etc/munge/munge.key; chmod 400 /etc/munge/munge.key; }
# Processes let go of the caller's output; it would wait for its end otherwise.
munge -n </dev/null >/dev/null 2>&1 || {
  setpriv --reuid=munge --regid=munge --clear-groups munged --force >"$directory/munged.out" 2>&1
  touch "$directory/own_munged"
}
munge -n | unmunge >/dev/null
cat >"$directory/slurm.conf" <<END
ClusterName=test
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmctldPort=$2
SlurmdPort=$3
AuthType=auth/munge
AuthInfo=cred_expire=10
CredType=cred/munge
StateSaveLocation=$directory/state
SlurmdSpoolDir=$directory/spool
SlurmctldPidFile=$directory/slurmctld.pid
SlurmdPidFile=$directory/slurmd.pid
SlurmctldLogFile=$directory/slurmctld.log
SlurmdLogFile=$directory/slurmd.log
SlurmUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=200000
MinJobAge=3600
KillWait=5
JobRequeue=1
$(slurmd -C | grep -o 'NodeName=[^ ]*') NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$(slurmd -C | sed -n 's/.*RealMemory=\([0-9]*\).*/\1/p')
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES:4
END
export SLURM_CONF="$directory/slurm.conf"
slurmctld </dev/null >"$directory/slurmctld.out" 2>&1
slurmd </dev/null >"$directory/slurmd.out" 2>&1
for _ in $(seq 60); do
  sinfo --noheader --format=%T 2>/dev/null | grep -q '^idle$' && exit 0
  sleep 0.5
done
echo "the node does not get ready: $(tail -n 3 "$directory"/slurm*.log)" >&2
exit 1
