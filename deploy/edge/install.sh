#!/bin/sh
# Puts edgemirror on a box without internet, each version in a folder of its own; `current` is a link to one of them.
#
#   install.sh install     from an unpacked bundle, on a box without edgemirror
#   install.sh upgrade     from an unpacked bundle: beside the version that runs; back to that if the new one fails
#   install.sh rollback    to the version before; again: forward
#   install.sh uninstall   configuration and data stay, unless told --purge
#
#   --prefix DIR      where versions go                        /opt/edgemirror
#   --etc DIR         where DIR/edgemirror, with the           /etc; without systemd PREFIX/etc
#                     configuration, and DIR/systemd are
#   --data DIR        journal and keys                         /var/lib/edgemirror; without systemd PREFIX/data
#   --bin DIR         a link to the command goes there         /usr/local/bin; without systemd none
#   --no-systemd      no units, no user, no root needed
#   --python FILE     which Python of the bundle's version     python3.N or python3 of PATH
#   --no-copy         upgrade: keep no copy of a journal whose schema changes; there is no way back then
#   --new-journal     rollback: set a journal that the earlier version cannot read aside, and begin a new one
#   --purge           uninstall: delete configuration, keys, secrets and all samples that are not in the bucket
#
# What was told to `install` is kept in PREFIX/installed; the other verbs need only --prefix, and not even that
# when they are called as PREFIX/current/install.sh. Exit codes: 0 done, 1 failed (and taken back), 2 usage.

set -eu
umask 022
LC_ALL=C PATH=$PATH:/usr/sbin:/sbin
export LC_ALL PATH

SERVICE=edgemirror
HOLD_S=${EDGEMIRROR_HOLD_S:-10} # a new version that runs for so long has started
NOW=$(date -u +%Y%m%dT%H%M%SZ)
HERE=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)

die() { # WHAT [NEXT-COMMAND [EXIT-CODE]]
    echo "install.sh: $1" >&2
    [ -z "${2:-}" ] || echo "  try: $2" >&2
    exit "${3:-1}"
}

usage() { sed -n '/^#   /s/^#   //p' "$0"; }

of_bundle() { sed -n "s/^$1=//p" "$HERE/BUNDLE"; }

recorded() { sed -n "s/^$1=//p" "$prefix/installed"; }

target_of() { readlink "$prefix/$1" 2>/dev/null || true; }

schema() { # of the journal that a version writes
    number=$("$prefix/$1/bin/edgemirror" version --json | sed -n 's/.*"schema": *\([0-9]*\).*/\1/p')
    echo "${number:-0}"
}

works() { "$1/bin/edgemirror" version >/dev/null && "$1/bin/python" -I -c 'import gateway.io.runtime'; }

point() { # LINK VERSION: at once or not at all
    rm -f "$prefix/.$1.new"
    ln -s "$2" "$prefix/.$1.new"
    mv -T "$prefix/.$1.new" "$prefix/$1"
}

# --- what the options say ------------------------------------------------------------------------------

check_path() { # OPTION VALUE: a path that needs no quotes in a unit or a script's first line
    case $2 in
        /*[!A-Za-z0-9._/-]* | [!/]* | */../* | */.. | / | '')
            die "$1 is '$2'; use an absolute path of letters, digits and . _ - such as /opt/edgemirror" '' 2
            ;;
    esac
}

options() {
    prefix='' etc='' data='' bin='' python='' systemd=yes copy=yes new_journal=no purge=no
    while [ $# -gt 0 ]; do
        case $1 in
            --prefix | --etc | --data | --bin | --python)
                [ $# -ge 2 ] || die "$1 needs a value" '' 2
                check_path "$1" "$2"
                case $1 in
                    --prefix) prefix=${2%/} ;;
                    --etc) etc=${2%/} ;;
                    --data) data=${2%/} ;;
                    --bin) bin=${2%/} ;;
                    --python) python=$2 ;;
                esac
                shift
                ;;
            --no-systemd) systemd=no ;;
            --no-copy) copy=no ;;
            --new-journal) new_journal=yes ;;
            --purge) purge=yes ;;
            *) die "$1 is no option" "$0 --help" 2 ;;
        esac
        shift
    done
    if [ -z "$prefix" ]; then
        prefix=/opt/edgemirror
        [ ! -e "$HERE/complete" ] || prefix=$(dirname "$HERE") # called as PREFIX/current/install.sh
    fi
}

defaults() { # for `install`
    if [ "$systemd" = yes ]; then
        : "${etc:=/etc}" "${data:=/var/lib/edgemirror}" "${bin:=/usr/local/bin}"
        command -v systemctl >/dev/null || die "there is no systemd here" "$0 install --prefix DIR --no-systemd"
    else
        : "${etc:=$prefix/etc}" "${data:=$prefix/data}"
    fi
}

remember() { # for all other verbs
    [ -e "$prefix/installed" ] || die "edgemirror is not installed below $prefix" "$0 install, or name the --prefix" 2
    systemd=$(recorded systemd) etc=$(recorded etc) data=$(recorded data) bin=$(recorded bin)
}

writable() { # every folder that is written to, before anything is
    for folder; do
        there=$folder
        while [ ! -e "$there" ]; do there=$(dirname "$there"); done
        [ -w "$there" ] || die "$folder cannot be written" "sudo $0 $verb, or choose --prefix DIR --no-systemd"
    done
}

# --- the bundle ----------------------------------------------------------------------------------------

check_bundle() {
    [ -e "$HERE/SHA256SUMS" ] || die "$HERE is no bundle" "unpack the bundle, and call the install.sh in it" 2
    listed=$(wc -l <"$HERE/SHA256SUMS")
    present=$(find "$HERE" -type f ! -name SHA256SUMS | wc -l)
    (cd "$HERE" && sha256sum --check --strict --quiet SHA256SUMS) && [ "$listed" -eq "$present" ] ||
        die "the bundle is damaged, or not as it was made ($present files, $listed listed)" 'copy and unpack it again'
    version=$(of_bundle version)
}

check_box() {
    wanted=$(of_bundle python)
    for candidate in ${python:-python$wanted python3}; do
        found=$(command -v "$candidate") || continue
        is=$("$found" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || continue
        [ "$is" != "$wanted" ] || break
    done
    [ "${is:-none}" = "$wanted" ] ||
        die "this bundle is for Python $wanted; found: ${is:-none}" "--python FILE, or a bundle made with that Python"
    python=$found
    is=$("$python" -c 'import sysconfig; print(sysconfig.get_platform().replace("-", "_"))')
    [ "$is" = "$(of_bundle platform)" ] || die "this bundle is for $(of_bundle platform), and this box is $is"
    is=$(getconf GNU_LIBC_VERSION 2>/dev/null | sed 's/.* //')
    lowest=$(printf '%s\n' "$(of_bundle glibc)" "${is:-0}" | sort -V | head -n 1)
    [ "$lowest" = "$(of_bundle glibc)" ] || die "this bundle needs glibc $(of_bundle glibc), and this box has ${is:-none}"
}

lay() { # the version of the bundle below PREFIX, whole or not at all
    target=$prefix/$version
    if [ -e "$target/complete" ]; then
        works "$target" || die "edgemirror $version, which is in $target, does not run" "rm -r $target, and again"
        return
    fi
    mkdir -p "$prefix"
    rm -rf "$target" # what was cut off
    trap 'rm -rf "$target"' EXIT
    echo "installing edgemirror $version into $target"
    "$python" -m venv --without-pip "$target"
    PIP_CONFIG_FILE=/dev/null "$target/bin/python" "$(echo "$HERE"/wheels/pip-*.whl)/pip" --isolated --no-input \
        install --quiet --disable-pip-version-check --no-index --find-links "$HERE/wheels" "edgemirror==$version" ||
        die "the wheels cannot be installed" "df -h $prefix"
    works "$target" || die "edgemirror $version does not run on this box"
    mkdir "$target/share"
    cp "$HERE/install.sh" "$HERE/BUNDLE" "$HERE/LICENSE" "$target/"
    cp -R "$HERE/docs" "$target/docs"
    cp "$HERE/journald.conf" "$target/share/"
    sed -e "s#/var/lib/edgemirror#$data#g" -e "s#/etc/edgemirror#$etc/edgemirror#g" \
        "$HERE/gateway.toml" >"$target/share/gateway.toml"
    state='' # a folder that is not systemd's own place for it has to be opened
    [ "$data" = /var/lib/edgemirror ] || state="s#^StateDirectory=.*#ReadWritePaths=$data#; /^StateDirectoryMode=/d;"
    sed -e "$state s#@PREFIX@#$prefix#g; s#@ETC@#$etc#g; s#/var/lib/edgemirror#$data#g" \
        "$HERE/edgemirror.service" >"$target/share/edgemirror.service"
    sync -f "$target" 2>/dev/null || sync
    : >"$target/complete"
    trap - EXIT
}

# --- what stands outside PREFIX ------------------------------------------------------------------------

place() { # FILE DESTINATION FORMER: what the operator has changed stays, the other one is laid beside it
    [ ! -e "$2.new" ] || rm "$2.new"
    if [ ! -e "$2" ] || cmp -s "$2" "$3"; then
        mkdir -p "$(dirname "$2")"
        cp "$1" "$2"
    elif ! cmp -s "$1" "$2"; then
        cp "$1" "$2.new"
        echo "$2 was changed here and stays; what is new is in $2.new"
    fi
}

files() { # VERSION FORMER-VERSION
    share=$prefix/$1/share former=$prefix/${2:-none}/share
    place "$share/gateway.toml" "$etc/edgemirror/gateway.toml.example" "$former/gateway.toml"
    [ "$systemd" = yes ] || return 0
    place "$share/edgemirror.service" "$etc/systemd/system/$SERVICE.service" "$former/edgemirror.service"
    place "$share/journald.conf" "$etc/systemd/journald.conf.d/$SERVICE.conf" "$former/journald.conf"
    systemctl daemon-reload || echo "systemd does not answer; it will know the unit after the next boot"
}

folders() {
    [ "$systemd" = no ] || id -u $SERVICE >/dev/null 2>&1 ||
        useradd --system --user-group --home-dir "$data" --no-create-home --shell /usr/sbin/nologin $SERVICE
    for folder in "$etc/edgemirror" "$etc/edgemirror/secrets" "$etc/edgemirror/pki" "$etc/edgemirror/pki/trusted"; do
        [ ! -e "$folder" ] || continue
        mkdir -p -m 0750 "$folder"
        [ "$systemd" = no ] || chown $SERVICE:$SERVICE "$folder"
    done
    [ "$systemd" = yes ] || return 0
    if [ ! -e "$data" ]; then
        mkdir -p -m 0700 "$data"
        chown $SERVICE:$SERVICE "$data"
    fi
}

command_link() {
    [ -n "$bin" ] || return 0
    if [ ! -e "$bin/edgemirror" ] || [ "$(readlink "$bin/edgemirror")" = "$prefix/current/bin/edgemirror" ]; then
        mkdir -p "$bin"
        ln -sfn "$prefix/current/bin/edgemirror" "$bin/edgemirror"
    else
        echo "$bin/edgemirror is something else and stays; the command is $prefix/current/bin/edgemirror"
    fi
}

# --- the service ---------------------------------------------------------------------------------------

is_active() { [ "$systemd" = yes ] && systemctl is-active --quiet $SERVICE; }

restarts() { systemctl show --property=NRestarts --value $SERVICE; }

healthy() { # tells whether `current` runs: with the service as READY says and for a while, else by itself
    if [ "$active" = yes ]; then
        echo "starting $SERVICE and watching it for $HOLD_S s"
        systemctl restart $SERVICE || return 1
        count=$(restarts)
        sleep "$HOLD_S"
        is_active && [ "$(restarts)" = "$count" ]
    else
        works "$prefix/current"
    fi
}

unused() { # tells whether nobody has the journal open, after the service was stopped
    [ ! -e "$data/lock" ] || flock --nonblock "$data/lock" true && return
    [ $active = no ] || systemctl start $SERVICE || true
    return 1
}

set_aside() { # FOLDER HOW: the journal of a gateway that does not run, by `cp -p` or `mv`, into a new folder
    mkdir -m 0700 "$1" || return 1
    for part in "$data"/mirror.db "$data"/mirror.db-wal "$data"/mirror.db-shm; do
        [ ! -e "$part" ] || $2 "$part" "$1/" || return 1
    done
}

# --- the verbs -----------------------------------------------------------------------------------------

install() {
    defaults
    check_bundle
    check_box
    is=$(target_of current)
    if [ "$is" = "$version" ]; then
        echo "edgemirror $version is installed already"
        return
    fi
    [ -z "$is" ] || die "edgemirror $is is installed below $prefix" "$0 upgrade --prefix $prefix"
    writable "$prefix" "$etc/edgemirror" ${bin:+"$bin"}
    [ "$systemd" = no ] || writable "$etc/systemd/system" "$data"
    lay
    printf 'systemd=%s\netc=%s\ndata=%s\nbin=%s\n' "$systemd" "$etc" "$data" "$bin" >"$prefix/installed"
    folders
    files "$version" ''
    point current "$version"
    command_link
    [ "$systemd" = no ] || systemctl try-restart systemd-journald || true # the log's bounds
    echo "edgemirror $version is installed"
    next_commands
}

next_commands() {
    conf=$etc/edgemirror command=$prefix/current/bin/edgemirror where='' as=''
    [ "$data" = /var/lib/edgemirror ] || where=" --data-dir $data"
    [ "$systemd" = no ] || as="sudo -u $SERVICE "
    echo "next: $as$command init opc.tcp://HOST:PORT --out $conf/gateway.toml$where"
    echo "        (or edit a copy of gateway.toml.example there; secrets go into $conf/secrets)"
    echo "      $as$command check --online --config $conf/gateway.toml"
    if [ "$systemd" = yes ]; then
        echo "      systemctl enable --now $SERVICE"
    else
        echo "      $command run --config $conf/gateway.toml"
    fi
    echo "or, for a box that has died: $command restore-config BACKUP"
}

upgrade() {
    remember
    check_bundle
    check_box
    old=$(target_of current) before=$(target_of previous)
    if [ "$old" = "$version" ]; then
        echo "edgemirror $version is installed already"
        return
    fi
    writable "$prefix"
    lay
    was=$(schema "$old") will=$(schema "$version") kept=''
    [ "$will" -ge "$was" ] ||
        die "edgemirror $version cannot read the journal of $old (schema $was; $version knows $will)" \
            "$prefix/current/install.sh rollback --new-journal, where $version is the version before"
    active=no
    ! is_active || active=yes
    trap '' HUP # a connection that breaks now must not leave it half done
    if [ "$will" -gt "$was" ] && [ "$copy" = yes ] && [ -e "$data/mirror.db" ]; then
        [ "$systemd" = yes ] || die "edgemirror $version changes the journal's schema from $was to $will" \
            "stop the gateway, copy $data/mirror.db as the way back, then upgrade --no-copy"
        echo "copying the journal, which $version will change: the way back"
        [ $active = no ] || systemctl stop $SERVICE
        unused || die "a gateway that was not started by systemd uses $data" "stop it first"
        kept=$data/before-$version-$NOW
        if ! set_aside "$kept" 'cp -p'; then
            rm -rf "$kept"
            [ $active = no ] || systemctl start $SERVICE
            die "there is no room for a copy of the journal; $old goes on" "df -h $data, or upgrade --no-copy"
        fi
    fi
    point previous "$old"
    point current "$version"
    files "$version" "$old"
    if healthy; then
        [ -z "$kept" ] || rm -rf "$kept"
        prune
        echo "edgemirror $version runs in the place of $old; back: $prefix/current/install.sh rollback"
        [ "$systemd" = yes ] || echo "next: restart the gateway, if it runs"
        return
    fi
    echo "edgemirror $version does not run; going back to $old" >&2
    point current "$old"
    if [ -n "$before" ]; then point previous "$before"; else rm "$prefix/previous"; fi
    files "$old" "$version"
    [ $active = no ] || systemctl stop $SERVICE || true
    if [ -n "$kept" ]; then # what the new version has stored meanwhile stays to be read
        set_aside "$data/of-$version-$NOW" mv
        mv "$kept"/* "$data/"
        rmdir "$kept"
    fi
    [ $active = no ] || systemctl restart $SERVICE || true
    die "edgemirror $version did not run; $old is in its place again" "journalctl -u $SERVICE --since -10min"
}

prune() { # versions but the present and the one before
    for other in "$prefix"/*/pyvenv.cfg; do
        other=$(basename "$(dirname "$other")")
        case $other in
            current | previous | "$(target_of current)" | "$(target_of previous)") ;;
            *) rm -rf "${prefix:?}/$other" ;;
        esac
    done
}

rollback() {
    remember
    from=$(target_of current) to=$(target_of previous)
    [ -n "$to" ] || die "there is no version before $from"
    writable "$prefix"
    works "$prefix/$to" || die "edgemirror $to does not run on this box any more" "install the bundle of $to again"
    active=no
    ! is_active || active=yes
    trap '' HUP
    if [ "$(schema "$to")" -lt "$(schema "$from")" ] && [ -e "$data/mirror.db" ]; then
        [ $new_journal = yes ] || die "edgemirror $to cannot read the journal of $from" \
            "rollback --new-journal, which sets it aside: first see that all is in the bucket, edgemirror status"
        [ $active = no ] || systemctl stop $SERVICE
        unused || die "a gateway uses $data" "stop it first"
        set_aside "$data/of-$from-$NOW" mv || die "the journal cannot be moved" "ls -l $data"
        echo "the journal of $from is in $data/of-$from-$NOW now; $to begins a new one"
    fi
    point current "$to"
    point previous "$from"
    files "$to" "$from"
    healthy || die "edgemirror $to does not run either" "journalctl -u $SERVICE --since -10min"
    echo "edgemirror $to is in the place of $from"
    [ "$systemd" = yes ] || echo "next: restart the gateway, if it runs"
}

uninstall() {
    remember
    writable "$prefix"
    if [ "$systemd" = yes ]; then
        systemctl disable --now $SERVICE || true
        rm -f "$etc/systemd/system/$SERVICE.service" "$etc/systemd/system/$SERVICE.service.new"
        rm -f "$etc/systemd/journald.conf.d/$SERVICE.conf" "$etc/systemd/journald.conf.d/$SERVICE.conf.new"
        systemctl daemon-reload || true
    fi
    [ -z "$bin" ] || [ "$(readlink "$bin/edgemirror")" != "$prefix/current/bin/edgemirror" ] || rm "$bin/edgemirror"
    if [ $purge = yes ]; then
        [ "$systemd" = no ] || rm -rf "$etc/systemd/system/$SERVICE.service.d"
        rm -rf "$etc/edgemirror" "$data"/of-* "$data"/before-*
        rm -rf "$data"/mirror.db* "$data/lock" "$data/reserve" "$data/session.key" "$data/signing.pem" "$data/pki"
        rmdir "$data" "$prefix/etc" 2>/dev/null || true
        [ "$systemd" = no ] || userdel $SERVICE || true
        echo "configuration, keys and journal are deleted"
    else
        echo "kept: $etc/edgemirror and $data"
    fi
    for version in "$prefix"/*/pyvenv.cfg; do rm -rf "$(dirname "$version")"; done
    rm -f "$prefix/current" "$prefix/previous" "$prefix/installed"
    rmdir "$prefix" 2>/dev/null || true
    echo "edgemirror is uninstalled"
}

verb=${1:-help}
[ $# -eq 0 ] || shift
case $verb in
    install | upgrade | rollback | uninstall)
        options "$@"
        "$verb"
        ;;
    help | -h | --help) usage ;;
    *) die "$verb is no verb" "$0 --help" 2 ;;
esac
