//! The proxy itself: what passes, what does not, and what the client sees.

use super::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Counts what reaches it, and answers each with the number.
async fn upstream() -> (String, Arc<Mutex<u32>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let count = Arc::new(Mutex::new(0));
    let counter = count.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let counter = counter.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let counter = counter.clone();
                async move {
                    let form = request.into_body().collect().await?.to_bytes();
                    let mut count = counter.lock().unwrap();
                    *count += 1;
                    let text = format!("<answer number=\"{count}\">{}</answer>", String::from_utf8_lossy(&form));
                    Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from(text))))
                }
            });
            tokio::spawn(async move { http1::Builder::new().serve_connection(TokioIo::new(stream), service).await });
        }
    });
    (url, count)
}

/// Sends a form as the SDK does, and returns all bytes that come back within two seconds, and whether that was the end.
async fn send(proxy: &Proxy, form: &str) -> (String, bool) {
    let address = proxy.url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let length = form.len();
    let request = format!(
        "POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\nauthorization: AWS4-HMAC-SHA256 \
         Credential=AKIA/20261124/us-east-1/ec2/aws4_request, SignedHeaders=host, Signature=0\r\n\r\n{form}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    let ended = tokio::time::timeout(Duration::from_millis(400), stream.read_to_end(&mut bytes)).await;
    (String::from_utf8_lossy(&bytes).into_owned(), ended.is_ok())
}

#[tokio::test]
async fn calls_are_told_apart_and_written_down() {
    let (url, count) = upstream().await;
    let proxy = Proxy::start(&url).await;
    let (answer, _) = send(&proxy, "Action=StopInstances&Version=2016-11-15&InstanceId.1=i-1").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.ends_with("InstanceId.1=i-1</answer>"), "{answer}");
    let seen = proxy.audit();
    assert_eq!((seen.len(), seen[0].service.as_str(), seen[0].action.as_str()), (1, "ec2", "StopInstances"));
    assert!(seen[0].passed_on && *count.lock().unwrap() == 1);
    assert_eq!((proxy.count("StopInstances"), proxy.count("StartInstances")), (1, 0));
}

#[tokio::test]
async fn a_rule_hits_what_it_names_after_those_it_skips_as_often_as_it_says() {
    let (url, count) = upstream().await;
    let proxy = Proxy::start(&url).await;
    let answer = Fault::Answer(When::Before, 503, "busy".to_owned());
    proxy.add(Rule { skip: 1, times: 2, holding: "i-1".to_owned(), ..Rule::every("Stop", answer) });
    let mut statuses = Vec::new();
    for form in [
        "Action=Stop&Id=i-1",
        "Action=Stop&Id=i-2",
        "Action=Start&Id=i-1",
        "Action=Stop&Id=i-1",
        "Action=Stop&Id=i-1",
        "Action=Stop&Id=i-1",
    ] {
        statuses.push(send(&proxy, form).await.0[9..12].to_owned());
    }
    assert_eq!(statuses, ["200", "200", "200", "503", "503", "200"]);
    assert_eq!(*count.lock().unwrap(), 4, "what is answered before is not passed on");
    proxy.heal();
    assert!(send(&proxy, "Action=Stop&Id=i-1").await.0.contains("200"));
}

#[tokio::test]
async fn what_fails_before_did_not_happen_and_what_fails_after_did() {
    let half = |text: &str| text.contains("200") && text.contains("<answer") && !text.contains("</answer>");
    /// The fault, how often the request reaches whom it is for, whether the answer ends, and what it says.
    type Row = (Fault, u32, bool, fn(&str) -> bool);
    let rows: Vec<Row> = vec![
        (Fault::Answer(When::Before, 500, "no".to_owned()), 0, true, |text| {
            text.contains("500") && text.ends_with("no")
        }),
        (Fault::Answer(When::After, 500, "no".to_owned()), 1, true, |text| {
            text.contains("500") && text.ends_with("no")
        }),
        (Fault::Reset(When::Before), 0, true, str::is_empty),
        (Fault::Reset(When::After), 1, true, str::is_empty),
        (Fault::Short, 1, true, half),
        (Fault::Stall, 1, false, half),
        (Fault::Hang, 0, false, str::is_empty),
        (Fault::Late(Duration::from_millis(100)), 1, true, |text| text.ends_with("</answer>")),
        (Fault::Late(Duration::from_secs(60)), 1, false, str::is_empty),
        (Fault::Edit(Arc::new(|text: &str| text.replace("answer", "reply"))), 1, true, |text| {
            text.ends_with("</reply>")
        }),
        (Fault::Without("Id"), 1, true, |text| text.ends_with(">Action=Stop</answer>")),
    ];
    for (number, (fault, reached, ends, as_seen)) in rows.into_iter().enumerate() {
        let (url, count) = upstream().await;
        let proxy = Proxy::start(&url).await;
        proxy.add(Rule::next("Stop", fault));
        let (text, ended) = send(&proxy, "Action=Stop&Id=i-1").await;
        assert_eq!((*count.lock().unwrap(), ended), (reached, ends), "row {number}: {text}");
        assert!(as_seen(&text), "row {number}: {text}");
        assert_eq!(proxy.audit()[0].passed_on, reached == 1, "row {number}");
    }
}

#[tokio::test]
async fn a_stale_answer_is_the_one_before() {
    let (url, count) = upstream().await;
    let proxy = Proxy::start(&url).await;
    send(&proxy, "Action=Describe").await;
    proxy.add(Rule::next("Describe", Fault::Stale));
    assert!(send(&proxy, "Action=Describe").await.0.contains("number=\"1\""));
    assert_eq!(*count.lock().unwrap(), 1);
    assert!(send(&proxy, "Action=Describe").await.0.contains("number=\"2\""));
}

#[tokio::test]
async fn what_moto_lacks_is_answered_here() {
    let (url, count) = upstream().await;
    let proxy = Proxy::start(&url).await;
    assert!(send(&proxy, "Action=DescribeInstanceRefreshes").await.0.contains("<InstanceRefreshes/>"));
    assert_eq!((*count.lock().unwrap(), proxy.audit()[0].passed_on), (0, false));
}
