//! A stream's socket behind two queues, for who has no use for a socket.

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::socket::StreamSocket;

/// Carries frames both ways until the far end has ended the stream, or nobody is left at this one. TCP is the
/// flow control: a queue that is full makes the far side wait.
pub async fn carry(
    socket: StreamSocket,
    mut from_here: mpsc::Receiver<Bytes>,
    to_here: mpsc::Sender<Bytes>,
) {
    let (mut sender, mut receiver) = socket.split();
    {
        let outward = async {
            while let Some(frame) = from_here.recv().await {
                if sender.send(frame).await.is_err() {
                    // It takes nothing more, and may have said something before: its end comes inward.
                    std::future::pending::<()>().await;
                }
            }
        };
        let inward = async {
            while let Ok(Some(frame)) = receiver.hear().await {
                if to_here.send(frame).await.is_err() {
                    break;
                }
            }
        };
        // The far end's end is the stream's end; our leaving is told to it.
        tokio::select! {
            () = outward => {}
            () = inward => {}
        }
    }
    sender.close().await;
}
