// Gateway in Go to compare Owsla with: what its users could write themselves with crypto/tls and amqp091-go.
//
//	gateway -port PORT -cert FILE -key FILE
//
// AMQP_URL is the URL of the broker. Lines of devices are published to the queue from_device, with the headers connection_id and
// from_device_seq. A message of the queue to_device is written to the connection in its header connection_id.
//
//   - No line is lost: it is kept until the broker has confirmed it, and published again after a refusal or on the next
//     connection. At most `window` lines are unconfirmed. Then devices are read no further.
//   - A message is acknowledged once it is written. A device that does not take a message within `patience` is disconnected.
//   - A connection has one goroutine. Messages are written by a few others, each for its share of the devices, so that the
//     messages of a device keep their order.
package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"flag"
	"fmt"
	"hash/maphash"
	"log"
	"net"
	"os"
	"sort"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const (
	window    = 10000            // unconfirmed lines, as with Owsla
	prefetch  = 2000             // unacknowledged messages
	writers   = 8                // goroutines that write messages to devices
	longest   = 65536            // bytes of a line
	patience  = 10 * time.Second // for a handshake, and for writing a message
	reconnect = time.Second      // pause before the broker is tried again
)

// publisher publishes lines with confirms.
type publisher struct {
	slots   chan struct{} // one element for each unconfirmed line
	mutex   sync.Mutex
	channel *amqp.Channel              // nil without a connection
	pending map[uint64]amqp.Publishing // unconfirmed lines by delivery tag
	waiting []amqp.Publishing          // lines of a lost connection
}

// publish waits for a place in the window and publishes a line.
func (p *publisher) publish(line amqp.Publishing) {
	p.slots <- struct{}{}
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if p.channel == nil {
		p.waiting = append(p.waiting, line)
		return
	}
	p.send(line)
}

// send publishes a line under the mutex. Errors end the connection, after which the line is published again.
func (p *publisher) send(line amqp.Publishing) {
	p.pending[p.channel.GetNextPublishSeqNo()] = line
	_ = p.channel.PublishWithContext(context.Background(), "", "from_device", false, false, line)
}

// serve publishes on one connection until it ends.
func (p *publisher) serve(connection *amqp.Connection) error {
	channel, err := connection.Channel()
	if err != nil {
		return err
	}
	if _, err := channel.QueueDeclare("from_device", true, false, false, false, nil); err != nil {
		return err
	}
	if err := channel.Confirm(false); err != nil {
		return err
	}
	// As large as the window, so that reading from the broker never waits for the mutex.
	confirms := channel.NotifyPublish(make(chan amqp.Confirmation, window))
	p.mutex.Lock()
	p.channel = channel
	for _, line := range p.waiting {
		p.send(line)
	}
	p.waiting = nil
	p.mutex.Unlock()

	for confirm := range confirms {
		p.mutex.Lock()
		line := p.pending[confirm.DeliveryTag]
		delete(p.pending, confirm.DeliveryTag)
		if !confirm.Ack {
			p.send(line)
		}
		p.mutex.Unlock()
		if confirm.Ack {
			<-p.slots
		}
	}
	p.mutex.Lock()
	p.channel = nil
	tags := make([]uint64, 0, len(p.pending))
	for tag := range p.pending {
		tags = append(tags, tag)
	}
	sort.Slice(tags, func(i, j int) bool { return tags[i] < tags[j] })
	for _, tag := range tags {
		p.waiting = append(p.waiting, p.pending[tag])
	}
	p.pending = make(map[uint64]amqp.Publishing)
	p.mutex.Unlock()
	return fmt.Errorf("connection lost")
}

// devices are the connections by their id.
type devices struct {
	mutex sync.RWMutex
	byID  map[string]net.Conn
}

func (d *devices) add(id string, conn net.Conn) {
	d.mutex.Lock()
	d.byID[id] = conn
	d.mutex.Unlock()
}

func (d *devices) remove(id string) {
	d.mutex.Lock()
	delete(d.byID, id)
	d.mutex.Unlock()
}

func (d *devices) find(id string) net.Conn {
	d.mutex.RLock()
	defer d.mutex.RUnlock()
	return d.byID[id]
}

// serve reads the lines of one device.
func (d *devices) serve(conn *tls.Conn, lines *publisher) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if conn.Handshake() != nil {
		return
	}
	conn.SetDeadline(time.Time{})
	id := newID()
	d.add(id, conn)
	defer d.remove(id)
	reader := bufio.NewScanner(conn)
	reader.Buffer(nil, longest)
	for seq := int64(0); reader.Scan(); seq++ {
		lines.publish(amqp.Publishing{
			Headers:      amqp.Table{"connection_id": id, "from_device_seq": seq},
			DeliveryMode: amqp.Persistent,
			Timestamp:    time.Now(),
			Body:         append([]byte(nil), reader.Bytes()...),
		})
	}
}

// newID returns a random UUID.
func newID() string {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		log.Fatal(err)
	}
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// consume hands the messages of one connection to the writers until it ends.
func consume(connection *amqp.Connection, shares []chan amqp.Delivery) error {
	channel, err := connection.Channel()
	if err != nil {
		return err
	}
	if _, err := channel.QueueDeclare("to_device", true, false, false, false, nil); err != nil {
		return err
	}
	if err := channel.Qos(prefetch, 0, false); err != nil {
		return err
	}
	messages, err := channel.Consume("to_device", "", false, false, false, false, nil)
	if err != nil {
		return err
	}
	seed := maphash.MakeSeed()
	for message := range messages {
		id, _ := message.Headers["connection_id"].(string)
		shares[maphash.String(seed, id)%writers] <- message
	}
	return fmt.Errorf("connection lost")
}

// write writes messages to their devices and acknowledges them.
func (d *devices) write(messages <-chan amqp.Delivery) {
	var line []byte
	for message := range messages {
		id, _ := message.Headers["connection_id"].(string)
		conn := d.find(id)
		if conn == nil {
			message.Reject(false)
			continue
		}
		line = append(append(line[:0], message.Body...), '\n')
		conn.SetWriteDeadline(time.Now().Add(patience))
		if _, err := conn.Write(line); err != nil {
			conn.Close()
			message.Reject(false)
			continue
		}
		message.Ack(false)
	}
}

// forever connects to the broker again and again, and lets `serve` use the connection.
func forever(what string, serve func(*amqp.Connection) error) {
	for {
		connection, err := amqp.Dial(os.Getenv("AMQP_URL"))
		if err == nil {
			err = serve(connection)
			connection.Close()
		}
		log.Printf("%s: %v", what, err)
		time.Sleep(reconnect)
	}
}

func main() {
	port := flag.Int("port", 8883, "port for devices")
	certificate := flag.String("cert", "", "PEM file of the certificate")
	key := flag.String("key", "", "PEM file of its key")
	flag.Parse()
	pair, err := tls.LoadX509KeyPair(*certificate, *key)
	if err != nil {
		log.Fatal(err)
	}
	lines := &publisher{slots: make(chan struct{}, window), pending: make(map[uint64]amqp.Publishing)}
	go forever("publishing", lines.serve)
	known := &devices{byID: make(map[string]net.Conn)}
	shares := make([]chan amqp.Delivery, writers)
	for n := range shares {
		shares[n] = make(chan amqp.Delivery, prefetch)
		go known.write(shares[n])
	}
	go forever("consuming", func(connection *amqp.Connection) error { return consume(connection, shares) })

	config := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12, SessionTicketsDisabled: true}
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", *port))
	if err != nil {
		log.Fatal(err)
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			log.Print(err)
			time.Sleep(10 * time.Millisecond)
			continue
		}
		go known.serve(tls.Server(conn, config), lines)
	}
}
