use std::path::Path;
use std::time::Duration;
use troop_cloud::Cloud as _;
use troop_cloud::local::client::LocalCloud;
use troop_policies::intent::{Cause, Intent};
use troop_policies::leash::{Permit, Unleashed, Warrant};
use troop_policies::step::{NewGroup, Size, Step};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let args: Vec<String> = std::env::args().collect();
    let cloud = LocalCloud::new(Path::new(&args[1]));
    match args[2].as_str() {
        "ps" => {
            for p in cloud.processes().await.unwrap() {
                println!("{p:?}");
            }
            let inv = cloud.inventory(&cloud.regions()[0].clone()).await.unwrap();
            for g in inv.groups.values() {
                println!("{} size {} enabled {} rot {}", g.name, g.size, g.enabled, g.in_rotation);
                for i in g.members.values() {
                    println!("  {} {} {:?} {:?} {:?}", i.id, i.zone, i.lifecycle, i.address, i.target);
                }
            }
        }
        "deploy" => {
            let image = cloud.import_image(Path::new(&args[4])).await.unwrap();
            let group: troop_policies::GroupName = args[3].parse().unwrap();
            let n: u32 = args[5].parse().unwrap();
            let zones = ["r1a", "r1b", "r1c"].iter().map(|z| z.parse().unwrap()).collect();
            let tags = [("troop:team".to_owned(), "demo".to_owned())].into();
            step(&cloud, Step::CreateGroup { group: NewGroup { name: group.clone(), image: image.id, zones, tags, has_targets: true } }).await;
            step(&cloud, Step::Resize { group: group.clone(), size: Size { min: n, desired: n, max: n } }).await;
            for _ in 0..100 {
                let inv = cloud.inventory(&cloud.regions()[0].clone()).await.unwrap();
                if inv.groups[&group].healthy(troop::clock::real_now()).count() as u32 >= n { break; }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            step(&cloud, Step::Enable { group: group.clone() }).await;
            step(&cloud, Step::Flip { cluster: group.cluster().clone(), to: group }).await;
        }
        _ => panic!(),
    }
}

async fn step(cloud: &LocalCloud, step: Step) {
    let intent = Intent {
        id: troop::serve::core::new_intent_id().unwrap(),
        account: cloud.account().clone(),
        region: cloud.regions()[0].clone(),
        step,
        cause: Cause::Push { push: 1, actor: "me".into() },
        at: troop::clock::real_now(),
    };
    let now = troop::clock::real_now();
    let u = Unleashed::for_step(&intent, Warrant::Push { halted_before_flip: false }, now).unwrap();
    let began = std::time::Instant::now();
    let out = cloud.perform(&intent, Permit::Unleashed(&u), now).await;
    println!("{}: {out:?} {:?}", intent.step, began.elapsed());
}
