//! Who the image's process is: `user[:group]` of the OCI config, resolved in the image's own passwd(5) and group(5) as
//! container runtimes do it. Pure.

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: String,
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: Vec<&'a str>,
}

/// Lines that are none (comments, too few fields, numbers that are none) are passed over, as libc does.
fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        match fields[..] {
            [name, _, uid, gid, _, home, ..] => Some(Account { name, uid: number(uid)?, gid: number(gid)?, home }),
            _ => None,
        }
    })
}

fn groups(group: &str) -> impl Iterator<Item = Group<'_>> {
    group.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        match fields[..] {
            [name, _, gid, members, ..] => {
                Some(Group { name, gid: number(gid)?, members: members.split(',').collect() })
            }
            _ => None,
        }
    })
}

/// An id that setuid(2) takes: -1 means "no change" there, and runtimes stop at 2^31 - 1.
fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id <= i32::MAX as u32)
}

/// Without a group the account's own applies, and the groups that list the account; with one, that one alone. An id that
/// no file names is good, with group 0 and / as home; a name that no file holds is not.
pub fn resolve(user: &str, passwd: &str, group: &str) -> Result<Identity, String> {
    let (user, wanted_group) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|it| !it.is_empty())),
        None => (user, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let id = number(user);
    let account = accounts(passwd).find(|it| it.name == user || Some(it.uid) == id);
    let uid = match (&account, id) {
        (Some(account), _) => account.uid,
        (None, Some(id)) => id,
        (None, None) => return Err(format!("no user {user} in the image's /etc/passwd")),
    };
    let home = account.as_ref().map_or("", |it| it.home);
    let home = if home.is_empty() { "/" } else { home };
    let (gid, groups) = match wanted_group {
        Some(wanted) => (group_id(wanted, group)?, Vec::new()),
        None => account.as_ref().map_or((0, Vec::new()), |it| (it.gid, groups_of(it.name, group))),
    };
    Ok(Identity { uid, gid, groups, home: home.to_string() })
}

fn group_id(wanted: &str, group: &str) -> Result<u32, String> {
    let id = number(wanted);
    let found = groups(group).find(|it| it.name == wanted || Some(it.gid) == id);
    let gid = found.map(|it| it.gid).or(id);
    gid.ok_or_else(|| format!("no group {wanted} in the image's /etc/group"))
}

fn groups_of(name: &str, group: &str) -> Vec<u32> {
    let mut ids: Vec<u32> = groups(group).filter(|it| it.members.contains(&name)).map(|it| it.gid).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# no line\nbad:x:y:z::/:\nshort:x:1\n\
        www:x:33:34:www:/var/www:/bin/false\n1000:x:77:78::/numbers:\nbare:x:500:501:::/bin/sh\nbig:x:4294967295:0::/:\n";
    const GROUP: &str =
        "root:x:0:\nwww:x:34:\naudio:x:29:bob,www\nvideo:x:44:www\nvideo2:x:44:www\nadm:x:4:root\n7:x:70:\n";

    fn is(user: &str, uid: u32, gid: u32, groups: &[u32], home: &str) {
        let expected = Identity { uid, gid, groups: groups.to_vec(), home: home.to_string() };
        assert_eq!(resolve(user, PASSWD, GROUP), Ok(expected), "{user}");
    }

    #[test]
    fn users_and_groups() {
        is("", 0, 0, &[4], "/root");
        is("root", 0, 0, &[4], "/root");
        is("0", 0, 0, &[4], "/root");
        is("www", 33, 34, &[29, 44], "/var/www");
        is("33", 33, 34, &[29, 44], "/var/www");
        is("www:audio", 33, 29, &[], "/var/www");
        is("www:", 33, 34, &[29, 44], "/var/www");
        is("www:99", 33, 99, &[], "/var/www");
        is("4242", 4242, 0, &[], "/");
        is("4242:4343", 4242, 4343, &[], "/");
        is(":audio", 0, 29, &[], "/root");
        is("bare", 500, 501, &[], "/");
    }

    #[test]
    fn a_name_of_digits_wins_over_the_number() {
        is("1000", 77, 78, &[], "/numbers");
        is("www:7", 33, 70, &[], "/var/www");
    }

    #[test]
    fn an_image_without_files() {
        assert_eq!(resolve("", "", "").map(|it| (it.uid, it.gid, it.home)), Ok((0, 0, "/".to_string())));
        assert_eq!(resolve("5:6", "", "").map(|it| (it.uid, it.gid)), Ok((5, 6)));
        assert!(resolve("www", "", "").is_err());
    }

    #[test]
    fn what_is_nobody_is_refused() {
        for user in ["nobody", "www:none", "big", "4294967295", "-1", "+5", "2147483648", "1 "] {
            assert!(resolve(user, PASSWD, GROUP).is_err(), "{user}");
        }
    }
}
