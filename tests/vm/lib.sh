# What tests/vm/uml and tests/vm/qemu share: reading the command line, and the order in which modules are loaded.

# What the planes and their tests need of a kernel; a kernel that lacks one goes without it, and the tests say what they miss.
VM_MODULES="ipv6 veth tun dummy ifb 8021q sch_netem sch_prio sch_htb sch_tbf sch_fq sch_ingress
    cls_u32 cls_flower cls_bpf cls_fw cls_matchall cls_cgroup act_mirred act_gact act_skbedit
    nf_tables nft_ct nft_hash nft_numgen nft_fwd_netdev nft_socket nft_queue"
VM_SHELL_PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
VM_CACHE=${TROOP_VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/troop-vm}

vm_die() { printf '%s: %s\n' "${0##*/}" "$1" >&2; exit 125; }

# Reads the options into vm_memory (MB), vm_cpus and vm_limit (seconds), and the command into vm_command.
vm_options() {
    vm_memory=768 vm_cpus=1 vm_limit=${TROOP_VM_LIMIT:-120}
    while [ $# -gt 0 ]; do
        case $1 in
            -m) vm_memory=$2; shift 2 ;;
            -c) vm_cpus=$2; shift 2 ;;
            -t) vm_limit=$2; shift 2 ;;
            --) shift; break ;;
            -*) vm_die "unknown option $1" ;;
            *) break ;;
        esac
    done
    [ $# -gt 0 ] || vm_die "no command; usage: ${0##*/} [-m MB] [-t SECONDS] [--] COMMAND [ARGUMENT...]"
    vm_command=("$@")
}

# Makes vm_work, the folder through which host and guest speak: the command goes in, its status comes out.
vm_work_folder() {
    mkdir -p "$VM_CACHE"
    vm_work=$(mktemp -d "$VM_CACHE/run.XXXXXX")
    trap 'rm -rf "$vm_work"' EXIT
    printf '%s\0' "${vm_command[@]}" >"$vm_work/command"
    env -0 >"$vm_work/environment"
    pwd >"$vm_work/folder"
}

# The files of the modules in VM_MODULES and of all that they need, in an order in which they can be loaded; $1: modules.dep.
vm_modules_in_order() {
    awk -v wanted="${VM_MORE_MODULES:-} $VM_MODULES" -F: '
        { name = $1; sub(/.*\//, "", name); sub(/\.ko.*/, "", name); gsub(/-/, "_", name); file[name] = $1; needs[$1] = $2 }
        function load(path,   list, i) {
            if (done[path]++) return
            for (i = split(needs[path], list, " "); i > 0; i--) load(list[i])
            print path
        }
        END { n = split(wanted, want, " "); for (k = 1; k <= n; k++) if (want[k] in file) load(file[want[k]]) }' "$1"
}

# The part of the guest that is the same in both, once proc, sys and the work folder are mounted: the rest of the file system,
# then the command. $1: the guest's name, which tests find as TROOP_VM.
vm_guest_script() {
    cat <<GUEST
export PATH=$VM_SHELL_PATH
mount -t tmpfs tmpfs /run
mkdir -p /run/netns /run/tmp /dev/pts /dev/shm /dev/net
mount -t devpts devpts /dev/pts; mount -t tmpfs tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup 2>/dev/null
[ -c /dev/net/tun ] || mknod /dev/net/tun c 10 200
for fd in fd:fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do ln -sfn "/proc/self/\${fd#*:}" "/dev/\${fd%%:*}"; done
ip link set lo up
cut -d' ' -f1 /proc/uptime >"\$work/booted"
mapfile -d '' -t command <"\$work/command"; mapfile -d '' -t environment <"\$work/environment"
cd "\$(cat "\$work/folder")"
env -i "\${environment[@]}" TMPDIR=/run/tmp TROOP_VM=$1 "\${command[@]}" </dev/null
echo \$? >"\$work/status"
sync
echo o >/proc/sysrq-trigger
sleep 60
GUEST
}

# Leaves with the command's status; 125 when the guest never started, 124 when it did not come to an end in time.
vm_leave() {
    if ! [ -s "$vm_work/booted" ]; then
        cat "$vm_work/errors" >&2
        vm_die "the guest did not start"
    fi
    if ! [ -s "$vm_work/status" ]; then
        printf '%s: not done within %s s\n' "${0##*/}" "$vm_limit" >&2
        exit 124
    fi
    exit "$(cat "$vm_work/status")"
}
